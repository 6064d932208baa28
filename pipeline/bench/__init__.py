"""``d2nas bench``: measurements of this machine, and of the search against its rivals."""
