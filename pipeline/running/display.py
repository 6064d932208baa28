"""Interface between the runner and whatever shows a run."""

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    """Display through which the runner speaks; silent where a subclass leaves something out."""

    def say(self, line: str) -> None:
        """Show a line."""
        return

    def warn(self, line: str) -> None:
        """Show a line that asks for action."""
        return

    def stage_current(self, stage: str, reference: str) -> None:
        """A stage need not run."""
        return

    def stage_begins(
        self, stage: str, total: int, done: int, unit: str, images: int = 0, epochs: int = 0
    ) -> None:
        """A stage's steps begin: of so many images each, if any, and in so many epochs."""
        return

    def stage_changes(self, stage: str, total: int, epochs: int) -> None:
        """A stage has now so many steps in all, in so many epochs."""
        return

    def stage_advances(self, stage: str, done: int, row: Mapping[str, Any] | None) -> None:
        """Steps were finished; with a row of metrics at an epoch's end."""
        return

    def stage_ends(self, stage: str, reference: str, seconds: float) -> None:
        """A stage was committed."""
        return
