"""How long a campaign is: its default size, or the longer one with D2NAS_LONG=1."""

import os


def count(default: int, long: int) -> int:
    """`default` cases in the suite, `long` ones when the environment has D2NAS_LONG=1."""
    return long if os.environ.get("D2NAS_LONG") == "1" else default
