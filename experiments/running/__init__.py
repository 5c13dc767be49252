"""From settings to a run: built, checked, trained, watched."""
