"""Engines: the compiled programs of one static configuration, on data that lie on the devices or are streamed."""

from sp_jax.engine.lanes import check_count, lanes_of, make_lanes
from sp_jax.engine.resident import Engine

__all__ = ["Engine", "check_count", "lanes_of", "make_lanes"]
