"""Parts of the training loop that `engine.py` puts together."""
