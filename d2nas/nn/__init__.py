"""Layers and networks: operations, cells, the searched supernet, the derived network."""
