"""Tables, figures and verdicts from the files of a run; no training."""
