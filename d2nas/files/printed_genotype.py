"""Genotypes as published codes print them: ``Genotype(normal=[('sep_conv_3x3', 1), ...], ...)``.

The text is tokenised and parsed, never evaluated.
"""

import ast
import keyword
import re
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError, one_line, shown_value

MAX_CHARACTERS = 20_000
"""Of a printed genotype with its comments; published ones have less than 1,000."""
MAX_RANGE = 100
"""The largest bound of a ``range``."""

_CELLS = ("normal", "reduce")
_CONCATS = ("normal_concat", "reduce_concat")
_TOKENS = re.compile(
    r"""(?P<word>[A-Za-z_]\w{0,99}(?![\w'"])) | \#[^\n]* | \s+ | [()\[\],=]
    | [0-9]{1,9}(?![\w.]) | "[^"\\\n]*" | '[^'\\\n]*'""",
    re.VERBOSE | re.ASCII,
)
_PRINTED = re.compile(r"\bGenotype\s*\(")


def is_printed(text: str) -> bool:
    """Whether a text is a printed genotype, not a name or a path."""
    return _PRINTED.search(text) is not None


def parse_printed(text: str, *, what: str) -> tuple[str | None, dict[str, Any]]:
    """Return the name to which a printed genotype is assigned, if any, and its plain data.

    Arguments are named, in any order, or not: the first cell is then the normal one, and the first
    concatenation too. Raises ``ConfigError`` naming ``what`` and the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{what}: {len(text)} characters are not supported, at most {MAX_CHARACTERS}"
        )
    _check_tokens(text, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(text.strip()).body
    except SyntaxError as error:
        raise ConfigError(f"{what}: invalid: {one_line(error.msg, 100)}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{what}: invalid: nested too deeply") from None
    if len(statements) != 1:
        raise ConfigError(
            f"{what}: {len(statements)} statements, not one",
            hint="keep the one Genotype(...) that is meant",
        )
    name, call = _named(statements[0], what)
    return name, dict(_arguments(call, what))


def _check_tokens(text: str, what: str) -> None:
    """Raise ``ConfigError`` for what no genotype needs: operators, keywords, escapes, floats."""
    place = 0
    while place < len(text):
        token = _TOKENS.match(text, place)
        if token is None or keyword.iskeyword(token["word"] or ""):
            line = text.count("\n", 0, place) + 1
            found = token[0] if token else text[place : place + 20]
            raise ConfigError(f"{what}: invalid in line {line}: {shown_value(found)}")
        place = token.end()


def _named(statement: ast.stmt, what: str) -> tuple[str | None, ast.Call]:
    name, value = None, getattr(statement, "value", None)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        value = statement.value if len(statement.targets) == 1 else None
    elif not isinstance(statement, ast.Expr):
        value = None
    if not isinstance(value, ast.Call) or not _calls(value, "Genotype"):
        raise ConfigError(f"{what}: invalid: not Genotype(...), nor NAME = Genotype(...)")
    return name, value


def _calls(call: ast.Call, name: str) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == name


def _arguments(call: ast.Call, what: str) -> Iterator[tuple[str, Any]]:
    taken = set[str]()
    unnamed = [(None, node) for node in call.args]
    for key, node in [*unnamed, *((named.arg, named.value) for named in call.keywords)]:
        where = f"argument {len(taken) + 1}" if key is None else key
        value = _value(node, f"{what}: {where}")
        if key is None:
            names = _CELLS if any(isinstance(each, list) for each in value) else _CONCATS
            key = next((name for name in names if name not in taken), where)
        if key not in (*_CELLS, *_CONCATS):
            raise ConfigError(f"{what}: unknown argument {shown_value(key)}")
        if key in taken:
            raise ConfigError(f"{what}: {key} is there twice")
        taken.add(key)
        yield key, value


def _value(node: ast.expr, where: str) -> list[Any]:
    if isinstance(node, ast.Call) and _calls(node, "range") and not node.keywords:
        bounds = [_literal(bound, where, 0) for bound in node.args]
        if not all(type(bound) is int and bound <= MAX_RANGE for bound in bounds):
            raise ConfigError(f"{where}: invalid range: bounds are integers up to {MAX_RANGE}")
        try:
            return list(range(*bounds))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: invalid range: {error}") from None
    if not isinstance(node, ast.List | ast.Tuple):
        raise ConfigError(f"{where}: invalid: not a list, a tuple or a range")
    return [_literal(each, f"{where}[{index}]", 2) for index, each in enumerate(node.elts)]


def _literal(node: ast.expr, where: str, depth: int) -> Any:
    """Return a name, a number, or lists of these, nested ``depth`` deep at most."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
        return node.value
    if not isinstance(node, ast.List | ast.Tuple):
        raise ConfigError(f"{where}: invalid: only names in quotes, numbers and lists of these are")
    if not depth:
        raise ConfigError(f"{where}: invalid: nested too deeply")
    return [_literal(each, f"{where}[{i}]", depth - 1) for i, each in enumerate(node.elts)]
