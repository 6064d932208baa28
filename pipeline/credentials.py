"""Credentials in the environment, which no message may show."""

import os
import re

from d2nas.errors import one_line

_SECRET = re.compile(r"(KEY|PASSWORD|SECRET|TOKEN)S?$")
_MIN_LENGTH = 4
"""Characters of a value that is looked for: a shorter one would hide ordinary words."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s]+@")


def without_credentials(text: str) -> str:
    """Return ``text`` without the values of variables that hold keys, passwords or tokens, and
    without the user and password of an address.
    """
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _MIN_LENGTH:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("", text)


def reason_without_credentials(error: BaseException, most: int = 200) -> str:
    """Return an exception's words on one line, cut after they were searched: half a key is one."""
    return one_line(without_credentials(str(error)), most) or type(error).__name__
