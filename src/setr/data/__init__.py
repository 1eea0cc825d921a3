"""Data sets: finding files, pairing images with masks, checks, shards and loading."""
