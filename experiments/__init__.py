"""The binaries: they drive the rounds and draw the paper's tables and figures; `sp_jax` knows nothing of them."""
