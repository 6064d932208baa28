"""Cases of ``d2nas bench memory``: the paper's Table 4, in modes and sizes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from d2nas.config import SearchConfig
from d2nas.config.registry import search_methods

PAPER = SearchConfig(
    method="d2nas",
    space="S0",
    num_cells=8,
    init_channels=16,
    branch_length=1,
    branch_head="linear",
    recompute="none",
    precision="fp32",
    batch_size=64,
)
"""The setting of Table 4."""

PAPER_GB = {
    "darts": 9.4,
    "gdas": 3.1,
    "pc-darts-4": 3.7,
    "pc-darts-2": 5.7,
    "d2nas": 2.1,
}
"""What Table 4 prints; ROME, here the entangled search, is not in it."""

HEAVIEST = ("sep_conv_3x3", "sep_conv_5x5")
"""The operations that need most memory in fp32, where nothing is recomputed."""

HEAVY = (*HEAVIEST, "dil_conv_5x5", "max_pool_3x3")
"""Those that do in one mode or another."""

RANDOM = "random"
"""What the names of random draws begin with."""

RIVALS = ("gdas", "darts", "pc-darts-4", "pc-darts-2", "darts-second-order")
"""Those of Table 4; and DARTS's second order, with ``full``."""

OTHER_RIVALS = ("darts-minus", "sdarts-adv", "zarts", "p-darts", "r-darts-es", "few-shot", "rsws")
"""Those whose steps take other memory than DARTS's, with ``full``: beta-darts, sdarts-rs, snas,
fair-darts, darts-plus and darts-pt run its graph; spos, fairnas and the searches that train single
cells that of rsws; r-darts-ada keeps states beside what r-darts-es takes."""

LOOK = "Hessian"
"""The part of a search between two epochs in which R-DARTS has its eigenvalue."""

PARTS = {"p-darts": (None, "stage 2", "stage 3"), "r-darts-es": (None, LOOK)}
"""What else of a method is measured than its steps from the first epoch on."""

OWN_SIZES: dict[str, dict[str, Any]] = {"p-darts": {"num_cells": 5}}
"""Where the published network is not Table 4's: P-DARTS begins with five cells."""


@dataclass(frozen=True, slots=True)
class Case:
    """Setting of one or two rows.

    ``published``: as the published codes run: PyTorch's own backward, and in each half the
    gradients of weights and logits alike. ``draws``: the sampled sub-networks that are measured:
    each operation on all edges and 16 random ones; the heavy operations only, and the random ones;
    the random ones alone, for a mean; or those with separable convolutions on all edges alone, for
    a worst case. ``part``: one of ``PARTS``; None: a step as from the first epoch on.
    """

    config: SearchConfig
    published: bool = False
    draws: Literal["all", "heavy", "random", "heaviest"] = "all"
    part: str | None = None

    @property
    def branch_length(self) -> int | None:
        """Cells per branch; None for a method without branches."""
        return search_methods.find(self.config.method).branch_cells(self.config)

    @property
    def is_sampled(self) -> bool:
        """Whether the method runs sampled sub-networks: those have branches."""
        return self.branch_length is not None

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that a row's memory depends on."""
        config = self.config
        layout = (config.num_cells, config.init_channels, config.batch_size)
        branch = (self.branch_length, config.branch_head)
        modes = (config.recompute, config.precision, self.published)
        return (config.method, config.space, *branch, *layout, *modes, self.part)

    @property
    def is_default(self) -> bool:
        """Whether this is what a user gets who sets nothing."""
        return self.identity == Case(SearchConfig()).identity

    @property
    def paper_gb(self) -> float | None:
        """Figure of the paper; None where it prints nothing."""
        config = self.config
        same = PAPER.model_copy(update={"method": config.method})
        rival = config.method in RIVALS
        if self.identity != Case(same, published=rival).identity:
            return None
        return PAPER_GB.get(config.method)

    def describe(self) -> str:
        """Return what this is, in a line."""
        config = self.config
        how = "as published" if self.published else f"recompute={config.recompute}"
        size = f"{config.num_cells} cells x {config.init_channels} channels"
        part = "" if self.part is None else f", {self.part}"
        return f"{config.method}, {size}, {how}, {config.precision}{part}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """The peak of each draw by its name, in bytes; a method that samples nothing has one, ``""``.

    ``state_bytes``: weights, their gradients and the optimizers' state alone.
    """

    case: Case
    state_bytes: int
    peaks: dict[str, int]
    measured_by: str


def cases(*, full: bool) -> list[Case]:
    """Return what the table shows; ``full``: all modes, and all draws everywhere."""
    found = [*_ours(full=full), *_rivals(full=full)]
    default = Case(SearchConfig())
    return found if any(case.is_default for case in found) else [default, *found]


def _ours(*, full: bool) -> list[Case]:
    def case(**changes: Any) -> Case:
        return Case(PAPER.model_copy(update=changes))

    def worst_and_mean(**changes: Any) -> Case:
        found = case(**changes)
        return found if full or found.is_default else replace(found, draws="heavy")

    def worst(**changes: Any) -> Case:
        return Case(PAPER.model_copy(update=changes), draws="all" if full else "heaviest")

    modes = ("none", "cell", "op") if full else ("none", "op")
    found = [
        worst_and_mean(recompute=mode, precision=precision)
        for precision in ("fp32", "bf16")
        for mode in modes
    ]
    wide: dict[str, Any] = {"num_cells": 20, "init_channels": 36}
    found += [
        worst(method="entangled"),
        worst(method="entangled", recompute="cell"),
        worst(num_cells=20),
        worst(num_cells=20, method="entangled"),
        worst(**wide),
    ]
    if full:
        found += [case(method="entangled", recompute="op"), case(num_cells=20, recompute="op")]
        found += [case(**wide, recompute="op")]
    return found


def _rivals(*, full: bool) -> list[Case]:
    """As published; and with this project's backward and recomputation, for a fair look."""
    found = []
    draws: Literal["all", "random"] = "all" if full else "random"
    for method in (*RIVALS, *OTHER_RIVALS) if full else (*RIVALS[:-1], "rsws"):
        config = PAPER.model_copy(update={"method": method, **OWN_SIZES.get(method, {})})
        settings: list[dict[str, Any]] = [{"recompute": "op"}]
        if full:
            settings = [
                {"recompute": mode, "precision": precision}
                for precision in ("fp32", "bf16")
                if precision in search_methods.find(method).precisions
                for mode in ("none", "cell", "op")
            ]
        for part in PARTS.get(method, (None,)):
            found.append(Case(config, published=True, draws=draws, part=part))
            # A Hessian is had by PyTorch's own backward in any case, and nothing is recomputed.
            found += [
                Case(config.model_copy(update=one), draws=draws, part=part)
                for one in settings
                if part != LOOK
            ]
    return found
