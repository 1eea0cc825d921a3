"""Metrics besides mIoU, their confidence intervals, and logit adjustment."""
