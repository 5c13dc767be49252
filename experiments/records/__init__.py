"""All that a run leaves on disk."""
