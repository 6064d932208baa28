"""Measurements of d2nas on this machine: ``python -m benchmarks``; the others are scripts."""
