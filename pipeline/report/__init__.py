"""The report of a bundle: facts, page, drawings."""
