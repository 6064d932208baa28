"""Training: the loop, the search, the retraining, and their state."""
