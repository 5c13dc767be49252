"""From what a run has left to tables, figures and verdicts; never trains."""
