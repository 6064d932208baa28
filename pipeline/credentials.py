"""Credentials in the environment, which no message may show."""

import os
import re

_SECRET = re.compile(r"(KEY|PASSWORD|SECRET|TOKEN)S?$")
_MIN_LENGTH = 4
"""Characters of a value that is looked for: a shorter one would hide ordinary words."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")


def without_credentials(text: str) -> str:
    """Return ``text`` without the values of variables that hold keys, passwords or tokens, and
    without the user and password of an address.
    """
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _MIN_LENGTH:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("", text)
