"""Command-line options, their values, and messages about wrong ones."""
