"""Costs of a network (parameters, multiply-adds, memory) and scores of its answers."""
