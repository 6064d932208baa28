"""How long a campaign is: its default size, or with ``pytest -m long`` the longer one."""

LONG = False
"""Set by conftest.py before any test is imported."""


def count(default: int, long: int) -> int:
    """`default` cases in the suite, `long` ones in a run of ``pytest -m long``."""
    return long if LONG else default
