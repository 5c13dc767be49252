"""Runs from settings: building, validation, training, progress."""
