"""From what a person types to a version: ``RUN/STAGE@vN``, ``RUN/STAGE`` or an id."""

import difflib
import re

from d2nas.errors import ConfigError

from .layout import Layout, names_in
from .references import Place, all_places, places

_NAME = re.compile(r"([^/@]{1,64})/([^/@]{1,64})(?:@v([1-9][0-9]{0,8}))?")
_ID = re.compile(r"[0-9a-f]{8,64}")


def resolve(layout: Layout, target: str) -> Place | str:
    """Return the reference that ``target`` names (the newest without a number), or the full id.

    Raises ``ConfigError`` if nothing, or more than one version, is meant.
    """
    name = _NAME.fullmatch(target)
    if name:
        run, stage, number = name.groups()
        known = places(layout, run, stage) if layout.kinds.is_stage(stage) else []
        if number is not None:
            known = [place for place in known if place.number == int(number)]
        if known:
            return known[-1]
    elif is_id(target):
        ids = [
            version_id for version_id in names_in(layout.versions) if version_id.startswith(target)
        ]
        if len(ids) == 1:
            return ids[0]
        if ids:
            raise ConfigError(
                f"{len(ids)} versions have an id that starts with {target}", hint="give more of it"
            )
    raise _unknown(layout, target)


def is_id(target: str) -> bool:
    """Whether ``target`` looks like an id, or the beginning of one."""
    return _ID.fullmatch(target) is not None


def _unknown(layout: Layout, target: str) -> ConfigError:
    known = [place.name for place in all_places(layout)]
    known += sorted({name.partition("@")[0] for name in known})
    if not known:
        hint = f"the store {layout.root} is empty: d2nas run quickstart fills it, or give --store"
    else:
        close = difflib.get_close_matches(target[:200], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "d2nas ls lists all versions"
    return ConfigError(f"there is no version {target[:200]!r}", hint=hint)
