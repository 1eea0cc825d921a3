"""Launching, watching and stopping processes; the machine's memory and CPUs."""
