"""Parts of the training loop that `run.py` puts together."""
