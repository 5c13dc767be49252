"""One short file for each experiment of the paper."""
