"""Registry of named things that code registers where it defines them.

A name that nobody registered yet is looked for in the modules of a package, then among the entry
points of installed packages. Modules are imported by name when one is asked for, as the
configuration asks and must load no more than it needs.
"""

import contextlib
import difflib
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from .errors import ConfigError, shown_value

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """Things of one kind by name.

    ``what`` they are in messages, the ``package`` whose modules register some, if one does, the
    ``group`` of the entry points that lead to the modules that register others; ``joint``: what
    stands between the words of a name.
    """

    def __init__(
        self, what: str, *, package: str | None = None, group: str, joint: str = "-"
    ) -> None:
        self._what, self._package, self._group, self._joint = what, package, group, joint
        self._known: dict[str, Kind] = {}
        self._added: list[str] = []

    def add(self, name: str, thing: Kind) -> Kind:
        """Register a thing. Raises ``ConfigError`` for a name that is taken or not of letters a to
        z, digits and joints.
        """
        if not re.fullmatch(f"[a-z0-9]+({self._joint}[a-z0-9]+)*", name):
            article = "an" if self._what[0] in "aeiou" else "a"
            what = f"invalid name of {article} {self._what}: {shown_value(name)}"
            joints = "hyphens" if self._joint == "-" else "underscores"
            raise ConfigError(what, hint=f"use a-z, 0-9 and {joints}")
        if self._known.get(name, thing) is not thing:
            raise ConfigError(f"the {self._what} {name} is already registered")
        self._known[name] = thing
        self._added.append(name)
        return thing

    def find(self, name: str) -> Kind:
        """Return a thing. Raises ``ConfigError`` for an unknown name, and where its code cannot be
        loaded.
        """
        broken = self._import_modules(until=name)
        if self._loaded(name) is None:
            names = self.names()
            close = difflib.get_close_matches(name.lower(), names, n=1)
            raise ConfigError(
                "; ".join([f"unknown {self._what} {shown_value(name)}", *broken]),
                hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}",
            )
        return self._known[name]

    def get(self, name: str) -> Kind | None:
        """Return a thing, None for an unknown name. Raises ``ConfigError`` where its code cannot be
        loaded.
        """
        self._import_modules(until=name)
        return self._loaded(name)

    def _loaded(self, name: str) -> Kind | None:
        if name not in self._known:
            for point in entry_points(group=self._group, name=name):
                self._load(point)
        return self._known.get(name)

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted; things of other packages are not loaded."""
        self._import_modules()
        others = (point.name for point in entry_points(group=self._group))
        return tuple(sorted({*self._known, *others}))

    def _import_modules(self, until: str | None = None) -> list[str]:
        """Import the modules of the package, or as many as give the name ``until``; return what is
        wrong with those that cannot be imported.
        """
        broken = []
        for module in self._modules(until or ""):
            if until in self._known:
                break
            try:
                with self._all_or_nothing():
                    import_module(module)
            except (Exception, SystemExit) as error:
                if isinstance(error, ModuleNotFoundError) and error.name == "torch":
                    raise  # what a serving installation lacks is told by the command
                broken.append(f"{module} cannot be imported: {type(error).__name__}: {error}")
        return broken

    def _modules(self, wanted: str) -> Iterator[str]:
        """Yield the modules of the package, first those whose names begin as the wanted one."""
        if self._package is None:
            return
        names = [module.name for module in iter_modules(import_module(self._package).__path__)]
        begins = wanted.partition("-")[0]
        for name in sorted(names, key=lambda name: (not name.startswith(begins), name)):
            yield f"{self._package}.{name}"

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Import a module of somebody's: what it prints is no output of the command, and where it
        fails, nothing that it registered stays.
        """
        outer, self._added = self._added, []
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except BaseException:
            for name in self._added:
                del self._known[name]
            raise
        finally:
            self._added = outer

    def owner_of(self, module: str) -> str | None:
        """Return what was registered by a module outside of d2nas, as a message names it."""
        for name, thing in self._known.items():
            own = getattr(thing, "read", None) or getattr(thing, "build", None)
            code = thing if isinstance(thing, type) else own
            if getattr(code, "__module__", "") == module and not module.startswith("d2nas."):
                return f"the {self._what} {name} ({module})"
        return None

    def _load(self, point: EntryPoint) -> None:
        """Import the module of another package that registers a thing."""
        try:
            with self._all_or_nothing():
                point.load()
                if point.name not in self._known:
                    raise LookupError(f"it registers no {point.name}")
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"the {self._what} {point.name} ({point.value}, an entry point {self._group}) "
                f"cannot be loaded: {type(error).__name__}: {error}",
                hint="repair or remove the package that declares it",
            ) from error
