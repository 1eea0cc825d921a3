"""Data sets: where their files lie, which mask belongs to which image, and what is wrong."""
