"""Storage: checkpoints, networks, and atomic writes."""
