"""Templates of documents for people, in which whatever is not marked safe is written by a function
that makes it text.
"""

from collections.abc import Callable
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def read_template(path: Traversable, write: Callable[[Any], str]) -> "Template":
    """Return the template in a file; ``write`` makes text of each value that stands in it.

    What ``write`` returns is escaped for HTML, too, unless it has ``__html__``.
    """
    # Here, because commands that write no document start without it.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else write(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(path.read_text("utf-8"))
