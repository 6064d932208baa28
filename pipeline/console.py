"""Everything a person sees: progress bars on a terminal, plain lines elsewhere, data on stdout.

Messages go to stderr. Colour never carries meaning; ``NO_COLOR`` is honoured by rich.
"""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from d2nas.data.faults import shown
from d2nas.errors import one_line

from . import streams
from .streams import optional_output, output_has_ended

LINE_SECONDS = 5.0
"""Least time between two epochs' lines where there is no terminal."""
LINE_COLUMNS = 80
"""What a line of progress keeps to where there is no terminal."""
STEP_LINE_SECONDS = 30.0
"""Without a line for so long, an unfinished epoch gets one, too."""


class _RateColumn(ProgressColumn):
    """Steps per second, or images where steps have some."""

    def render(self, task: Task) -> Text:
        """Return the rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed, task.fields))


def _rate(speed: float, fields: Mapping[str, Any]) -> str:
    images = fields["images"]
    return f"{speed * images:,.0f} images/s" if images else f"{speed:.2f} {fields['unit']}s/s"


class Console:
    """Shows a run; implements the runner's ``Display``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = RichConsole(highlight=False)
        self._err = RichConsole(stderr=True, highlight=False)
        self._clock = clock
        self._progress: Progress | None = None
        self._task: Any = None
        self._epoch_task: Any = None
        self._total = self._first = self._epochs = 0
        self._unit, self._images = "step", 0
        self._began = self._last_line = 0.0

    @property
    def on_terminal(self) -> bool:
        """Whether results are read by a person, and not by a program."""
        return self._out.is_terminal

    # What the runner says

    def say(self, line: str) -> None:
        """Show a line on stderr, unless messages are left out."""
        if streams.is_quiet:
            return
        self._err.print(Text(_printable(line)), soft_wrap=True)

    def warn(self, line: str) -> None:
        """Show a warning on stderr."""
        self._err.print(Text(f"warning: {_printable(line)}", style="yellow"), soft_wrap=True)

    def stage_current(self, stage: str, reference: str) -> None:
        """Say that a stage need not run."""
        self.say(f"{stage}: up to date ({reference})")

    def stage_begins(
        self, stage: str, total: int, done: int, unit: str, images: int = 0, epochs: int = 0
    ) -> None:
        """Start a stage's bars, or note when its lines are due."""
        self._stop_progress()
        self._total, self._first, self._epochs = total, done, epochs
        self._unit, self._images = unit, images
        self._began = self._last_line = self._clock()
        if self._err.is_terminal and not streams.is_quiet:
            self._progress = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeRemainingColumn(),
                console=self._err,
            )
            self._progress.start()
            if epochs:
                self._epoch_task = self._progress.add_task(
                    "epoch", total=epochs, completed=self._epoch(done), unit="epoch", images=0
                )
            self._task = self._progress.add_task(
                stage, total=total, completed=done, unit=unit, images=images
            )

    def stage_changes(self, stage: str, total: int, epochs: int) -> None:
        """Show that a stage ends earlier or later than it began to say."""
        self._total, self._epochs = total, epochs
        if self._progress is not None:
            self._progress.update(self._task, total=total)
            if epochs:
                self._progress.update(self._epoch_task, total=epochs)
        self.say(f"{stage}: now {total} {self._unit}s, {epochs} epochs")

    def stage_advances(self, stage: str, done: int, row: Mapping[str, Any] | None) -> None:
        """Move the bars, and print an epoch's line above them; without bars, now and then."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done)
            if self._epochs:
                self._progress.update(self._epoch_task, completed=self._epoch(done))
            if row is not None:
                self._err.print(Text(_summary(row, self._epochs)))
            return
        now = self._clock()
        due = STEP_LINE_SECONDS if row is None else LINE_SECONDS
        if now - self._last_line < due and (row is None or done < self._total):
            return
        self._last_line = now
        rate = (done - self._first) / max(1e-9, now - self._began)
        left = (self._total - done) / max(1e-9, rate)
        if row is not None:
            what = _summary(row, self._epochs)
        else:
            what = f"in epoch {self._epoch(done) + 1}/{self._epochs}" if self._epochs else ""
        line = (
            f"{stage}: {self._unit} {done}/{self._total}, "
            f"{_rate(rate, {'unit': self._unit, 'images': self._images})}, "
            f"{left:.0f} s left, {what}".removesuffix(", ")
        )
        self.say(textwrap.fill(line, LINE_COLUMNS, subsequent_indent="  "))

    def _epoch(self, done: int) -> int:
        """Return how many epochs are finished after ``done`` steps."""
        return done * self._epochs // self._total

    def stage_ends(self, stage: str, reference: str, seconds: float) -> None:
        """Say that a stage is committed."""
        self._stop_progress()
        self.say(f"{stage}: done in {seconds:.1f} s ({reference})")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_progress()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    # Results

    def error(
        self, message: str, hint: str | None, details: Sequence[str] = (), *, ends: bool = True
    ) -> None:
        """Show an error: one line what and where, its single cases, one line what to do.

        One that ends nothing leaves the bars as they are.
        """
        if ends:
            self._stop_progress()
        self._err.print(Text(f"error: {_printable_line(message)}", style="red"), soft_wrap=True)
        for line in details:
            self._err.print(Text(f"  {_printable_line(line)}"), soft_wrap=True)
        if hint:
            self._err.print(Text(f"hint: {_printable_line(hint)}"), soft_wrap=True)

    def data(self, value: Any) -> None:
        """Write JSON to stdout, with escapes where its encoding lacks a character."""
        sys.stdout.write(_json(value) + "\n")

    def data_parts(self, parts: Iterable[Sequence[Any]]) -> None:
        """Write one JSON list whose items come in parts, each as soon as it is there.

        The list is closed also where a later part fails.
        """
        before = "[\n  "
        try:
            for part in parts:
                for item in part:
                    # Not by lines: a string may hold what some take for the end of one.
                    sys.stdout.write(before + _json(item).replace("\n", "\n  "))
                    before = ",\n  "
                if output_has_ended():
                    return
        except BaseException:
            if before.startswith(","):
                sys.stdout.write("\n]\n")
            raise
        sys.stdout.write("\n]\n" if before.startswith(",") else "[]\n")

    def table_parts(
        self, title: str, columns: Sequence[str], parts: Iterable[Sequence[Sequence[str]]]
    ) -> None:
        """Show rows that come in parts as ``table`` does: on a terminal as a table for each."""
        is_first = True
        for rows in parts:
            if is_first or self._out.is_terminal:
                self.table(title, columns, rows)
            else:
                self._lines(rows)
            is_first = False
            if output_has_ended():
                return

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
    ) -> None:
        """Show rows: a table on a terminal, tab-separated lines elsewhere; ``note`` under them."""
        if not self._out.is_terminal:
            self._lines((columns, *rows))
            if note:
                self.note(note)
            return
        table = Table(title=title, title_justify="left", show_lines=False)
        for index, column in enumerate(columns):
            # What a row is called is copied into the next command: it is folded last.
            longest = max((len(row[0]) for row in rows), default=0) if index == 0 else 0
            table.add_column(
                column, overflow="fold", min_width=min(longest, self._out.width * 2 // 3)
            )
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        self._out.print(table)
        if note:
            self.note(note)

    def _lines(self, rows: Iterable[Sequence[str]]) -> None:
        for row in rows:
            sys.stdout.write("\t".join(_printable_line(cell) for cell in row) + "\n")

    def note(self, line: str) -> None:
        """Show a line that belongs to a result; marked with # where lines are data."""
        if self._out.is_terminal:
            self._out.print(Text(_printable(line)), soft_wrap=True)
        else:
            sys.stdout.write(f"# {_printable_line(line)}\n")

    def facts(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Show named values: a table on a terminal, ``name: value`` lines elsewhere."""
        if not self._out.is_terminal:
            sys.stdout.writelines(f"{_printable_line(': '.join(row))}\n" for row in rows)
            return
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(_printable_line(name)), Text(_printable(value)))
        self._out.print(table)

    def summary(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Show ``facts`` that close a command: what counts is in files, so they may be lost."""
        with optional_output():
            self.facts(title, rows)


def _beside(words: str, row: Mapping[str, Any], key: str) -> str:
    """Return a figure with that of the images held out beside it, where there are such."""
    return f"{words}/{row[key]:.4f}" if key in row else words


def _summary(row: Mapping[str, Any], epochs: int) -> str:
    """Return an epoch's row in words that fit a terminal's line; what was not measured is a dash.

    A search's loss and accuracy are the weights' half's / the architecture's half's. Its cell,
    temperature and entropy are in the rows of metrics, which ``show`` shows.
    """
    words = []
    if "epoch" in row:
        words.append(f"epoch {row['epoch'] + 1}" + (f"/{epochs}" if epochs else ""))
    if "weight_accuracy" in row:
        words += [
            f"loss {_shown(row['weight_loss'])}/{_shown(row['arch_loss'])}",
            f"accuracy {_shown(row['weight_accuracy'])}/{_shown(row['arch_accuracy'])}",
        ]
    elif "loss" in row:
        words += [
            _beside(f"loss {row['loss']:.4f}", row, "validation_loss"),
            _beside(f"accuracy {row['accuracy']:.4f}", row, "validation_accuracy"),
            f"lr {row['lr']:.2g}",
            f"clipped {100 * row['clip_rate']:.0f} %",
        ]
    elif "calibrated_loss" in row:
        words += [
            f"candidate {row['candidate']}",
            f"calibrated loss {row['calibrated_loss']:.4f}",
            f"accuracy {row['accuracy']:.4f}",
        ]
    if "parameterless_normal" in row:
        operations = len(row["genotype"]["normal"])
        words.append(f"parameterless {row['parameterless_normal']}/{operations}")
    return ", ".join(words)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _json(value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text


def _printable_line(text: str) -> str:
    return _printable(one_line(text))


def _printable(text: str) -> str:
    """Escape what a terminal would obey, lines kept: names of files may be anybody's."""
    return "\n".join(map(shown, text.split("\n")))
