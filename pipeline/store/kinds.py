"""Kinds of version: those of the stages that a store is given, and the checkpoints of stages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .fsio import is_safe_name

STATE = "state"
"""Kind of every checkpoint; those of a stage stand under ``STAGE-state``."""


def state_of(stage: str) -> str:
    """Return the name under which a stage's checkpoints stand."""
    return f"{stage}-{STATE}"


def kind_of(name: str) -> str:
    """Return the kind of the versions that stand under a name, a stage's or its checkpoints'."""
    return STATE if name.endswith(state_of("")) else name


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of version, named as the stage that makes it."""

    name: str
    checkpoints: bool = False
    """Whether the stage can be interrupted and continued."""
    rebuild: str = "rebuild it with: d2nas {stage} {run} --fresh"
    """Hint at a damaged version."""


class Kinds:
    """Kinds that a store holds, in the order of a run. A store that is given none holds any, and
    sorts them by name.
    """

    def __init__(self, kinds: Sequence[Kind] = ()) -> None:
        self._by_stage = {kind.name: kind for kind in kinds}
        self.names = [
            name
            for kind in kinds
            for name in ((state_of(kind.name), kind.name) if kind.checkpoints else (kind.name,))
        ]
        """Under which versions stand, checkpoints before what they lead to."""

    def is_stage(self, name: str) -> bool:
        """Whether versions may stand under this name: a stage's, or that of its checkpoints."""
        return name in self.names if self.names else is_safe_name(name)

    def __contains__(self, kind: object) -> bool:
        return not self.names or kind == STATE or kind in self._by_stage

    def in_order(self, present: Iterable[str]) -> list[str]:
        """Return the stages among these names, in the order of a run."""
        stages = [name for name in present if self.is_stage(name)]
        return sorted(stages, key=self.names.index if self.names else None)

    def rebuild_hint(self, run: str, stage: str) -> str:
        """Return the line that says how a damaged version is made again."""
        name = stage.removesuffix(state_of(""))
        kind = self._by_stage.get(name, Kind(name=name))
        return kind.rebuild.format(stage=name, run=run)
