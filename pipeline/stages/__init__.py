"""Stages in the order of a run, and what is computed from their records.

A new stage is a module beside these, and a place in ``ALL``.
"""

from pathlib import Path

from d2nas.config import Config

from ..store import Kinds, Store, Version
from ..store.forms import parse_form
from . import derive, evaluate, export, retrain, search, validate
from .stage import KEPT_CHECKPOINTS, METRICS_FILE, Context, Facts, Hooks, Stage, StateFacts

__all__ = [
    "ALL",
    "BY_NAME",
    "KEPT_CHECKPOINTS",
    "KINDS",
    "METRICS_FILE",
    "STAGES",
    "STUDY_STAGES",
    "Context",
    "Facts",
    "Hooks",
    "Stage",
    "checked",
    "open_store",
    "run_stage",
    "stages_of_run",
    "stages_of_study",
]

ALL = (
    search.STAGE,
    derive.STAGE,
    retrain.STAGE,
    evaluate.STAGE,
    export.STAGE,
    validate.STAGE,
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in ALL}

KINDS = Kinds(ALL)
"""Kinds of version: each stage's, and checkpoints."""


def open_store(root: Path) -> Store:
    """Return the store of the stages' versions below a folder."""
    return Store(root, kinds=ALL)


def stages_of_run(config: Config) -> tuple[str, ...]:
    """Return the stages of a whole run; with a given genotype there is no search."""
    return _stages_up_to("validate", config)


def stages_of_study(config: Config) -> tuple[str, ...]:
    """Return the stages of a study's trial; with a given genotype there is no search."""
    return _stages_up_to("evaluate", config)


def _stages_up_to(last: str, config: Config) -> tuple[str, ...]:
    """Return a stage and all that it is made from, in the order of a run."""
    needed = {last}
    for stage in reversed(ALL):
        if stage.name in needed:
            needed.update(stage.parents_of(config))
    return tuple(stage.name for stage in ALL if stage.name in needed)


STAGES = stages_of_run(Config())
"""What a run consists of."""

STUDY_STAGES = stages_of_study(Config())
"""What a cell of a study consists of."""


def run_stage(stage: str, context: Context) -> Facts:
    """Run one stage; returns the facts for its manifest."""
    return BY_NAME[stage].run(context)


def checked(version: Version) -> Version:
    """Return ``version`` if later stages can rely on its manifest.

    Raises ``DamagedArtifactError`` naming what is wrong.
    """
    manifest = version.manifest
    stage = BY_NAME.get(manifest.kind)
    facts = StateFacts if stage is None else stage.facts
    parse_form(facts, manifest.facts, version, "manifest.json: facts")
    if stage is not None:
        parse_form(stage.recorded_config, manifest.config, version, "manifest.json: config")
    return version
