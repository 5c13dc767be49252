"""Choices, settings, sweeps and flags: what a run is asked to do."""
