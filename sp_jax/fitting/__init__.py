"""Retraining one's own network on one's own arrays as they grow: `fit_rounds` (Section 2.2), and `tune_restart` to
choose λ and σ (the grid of Figure 8, on the data at hand)."""

from sp_jax.fitting.rounds import Choice, DivergedError, Fit, Tuned, fit_rounds, load_fit, save_fit, tune_restart

__all__ = ["Choice", "DivergedError", "Fit", "Tuned", "fit_rounds", "load_fit", "save_fit", "tune_restart"]
