"""``d2nas study``: grids of searches from one TOML file, and what their rows say together."""
