"""Examples in docstrings, to be run."""

import re
import textwrap
from types import ModuleType


def first_example(module: ModuleType) -> str:
    """The first indented block of a module's docstring."""
    example = re.search(r"\n\n((?: {4}.*\n)+)", str(module.__doc__))
    assert example is not None
    return textwrap.dedent(example[1])
