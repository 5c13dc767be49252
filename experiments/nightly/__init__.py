"""The nightly retraining of `python -m experiments.retrain`: reading files, preparing columns, a night, the folder."""
