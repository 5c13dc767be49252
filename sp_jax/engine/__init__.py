"""One static configuration as programs: lanes, on data that lie on the devices or are streamed to them."""

from sp_jax.engine.lanes import check_count, lanes_of, make_lanes
from sp_jax.engine.resident import Engine

__all__ = ["Engine", "check_count", "lanes_of", "make_lanes"]
