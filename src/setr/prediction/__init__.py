"""From what a user hands in to the files that come out, around `predictor.py` and `batch.py`."""
