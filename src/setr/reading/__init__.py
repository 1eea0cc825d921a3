"""Bytes to arrays: the files, formats and places that images, masks and settings are read from."""
