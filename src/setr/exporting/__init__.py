"""Graphs for other runtimes: making them, checking them, running them."""
