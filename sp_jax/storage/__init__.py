"""What is written to disk: checkpoints, networks, and files that are whole or not there."""
