"""Engines: the compiled programs of one static configuration, on data that lie on the devices or are streamed."""

from sp_jax.engine.engine import Engine
from sp_jax.engine.lanes import check_count, lanes_of, make_lanes

__all__ = ["Engine", "check_count", "lanes_of", "make_lanes"]
