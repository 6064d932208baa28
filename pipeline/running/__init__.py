"""Runs: stages in order, their inputs, checkpoints, signals, events, processes."""
