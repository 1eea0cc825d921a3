"""Processes and their machine: launching, watching, stopping, and what the system allows."""
