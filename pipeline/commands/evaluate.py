"""``d2nas evaluate``: a bundle's scores on a labelled folder; not the stage of that name."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..report.words import percent
from .options import BundleArgument, DeviceOption, JsonOption


def evaluate_command(
    bundle: BundleArgument,
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Pictures in folders named as the classes.")
    ],
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> int:
    """Evaluate a bundle on labelled pictures, DIR/<class>/*.

    Shown are accuracy with interval, and scores per class. Pictures without an answer are named
    and not counted; the exit code is that of the first. A study's stage evaluate is another thing:
    a trained network's accuracy, before any export.
    """
    from d2nas.data.faults import shown
    from d2nas.data.folders import left_out_line

    from ..bundle.evaluation import evaluate, labelled_folder
    from ..bundle.nearby import named
    from ..console import Console
    from ..report.classes import COLUMNS, FIRST_ROWS, class_rows
    from .answering import Problems, checked_model

    opened, session = checked_model(bundle, device)
    labelled = labelled_folder(opened, folder)
    console = Console()
    line = left_out_line(labelled.left_out, folder)
    if line is not None:
        console.say(line)
    problems = Problems(console)
    try:
        console.stage_begins("evaluate", labelled.num_pictures, 0, "picture")
        found = evaluate(
            opened,
            session,
            labelled,
            problems.tell,
            lambda done: console.stage_advances("evaluate", done, None),
        )
    finally:
        console.close()
    if found["without_images"]:
        console.say(f"classes without answered pictures: {named(found['without_images'])}")
    if as_json:
        console.data(found)
        return problems.exit_code
    console.facts(
        f"{opened.name} on {shown(folder)}", _score_rows(found, opened.report["accuracy"])
    )
    rows = [[str(word) for word in row] for row in class_rows(found)]
    more = len(rows) - FIRST_ROWS
    note = f"{more} more classes; --json has all, and the confusion matrix" if more > 0 else ""
    console.table("classes, worst first", COLUMNS, rows[:FIRST_ROWS], note)
    return problems.exit_code


def _score_rows(found: Mapping[str, Any], validated: Mapping[str, Any]) -> list[tuple[str, str]]:
    from d2nas.measure.scores import NUM_BINS

    low, high = found["accuracy_interval"]
    rows = [
        (
            "accuracy",
            f"{percent(found['accuracy'])} ({found['correct']} of {found['images']}; "
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        ),
        ("balanced accuracy", percent(found["balanced_accuracy"])),
        ("calibration error", f"{percent(found['ece'])} (ECE, {NUM_BINS} bins)"),
        ("when validated", f"{percent(validated['onnx'])} of {validated['test_images']} images"),
        ("device", found["device"]),
    ]
    if found["unanswered"]:
        rows.insert(1, ("without an answer", f"{len(found['unanswered'])}, not counted"))
    return rows
