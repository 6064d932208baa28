"""Checks before a run: its cost, the latency it can keep, what the machine supports."""
