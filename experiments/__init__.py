"""Programs that run the experiments and make the paper's tables and figures; `sp_jax` does not depend on them."""
