"""Bundle commands after parsing: verify, predict, evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2nas.data.faults import shown
from d2nas.data.folders import left_out_line
from d2nas.errors import ConfigError, D2NasError
from d2nas.files.verified_folder import is_digest
from d2nas.measure.scores import NUM_BINS

from ..bundle.derived import check_derived
from ..bundle.evaluation import evaluate, labelled_folder
from ..bundle.nearby import named
from ..bundle.pictures import find_pictures
from ..bundle.prediction import Prediction, check_golden, check_preparation, open_model, predictions
from ..bundle.reader import Bundle, open_bundle
from ..console import Console
from ..identity.check import check_identity
from ..onnx_io.providers import resolve_device
from ..onnx_io.session import OnnxSession

WORST_SHOWN = 20
"""Classes in the table of ``evaluate``."""


def verify_bundles(
    folders: Sequence[Path], digest: str | None, device: str, *, as_json: bool
) -> None:
    """Check bundles from themselves alone and show what was checked.

    Raises what is wrong with the first that is not sound.
    """
    if digest is not None and not is_digest(digest.lower()):
        raise ConfigError(f"--digest {digest!r} is no SHA-256 in hexadecimal")
    rows = [
        _verified(open_bundle(folder, digest), resolve_device(device), published=digest is not None)
        for folder in folders
    ]
    console = Console()
    if as_json:
        console.data(rows)
        return
    for row in rows:
        console.facts(f"bundle {row['name']}", _fact_rows(row))


def _fact_rows(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {**row, **{f"from {role}": id for role, id in row["lineage"].items()}}
    for key in ("lineage", "not_checked"):
        del facts[key]
    facts["checked"] = f"{len(row['checked'])} files"
    told = [(key.replace("_", " "), str(value)) for key, value in facts.items()]
    return told + [("not checked", f"{one['file']}: {one['reason']}") for one in row["not_checked"]]


def _verified(bundle: Bundle, device: str, *, published: bool) -> dict[str, Any]:
    identity = check_identity(bundle.model)
    picture = check_preparation(bundle)
    session = open_model(bundle, device)
    found = check_golden(bundle, session)
    checks = check_derived(bundle, published=published)
    return {
        "name": bundle.name,
        "version": bundle.number,
        "digest": bundle.digest,
        "genotype_digest": identity.genotype_digest,
        "convolutions": identity.num_convolutions,
        "device": session.device.label,
        "mode": session.mode,
        "golden_inputs": len(bundle.golden["images"]),
        "golden_picture": picture,
        "relative_l2": found.relative_l2,
        "lineage": dict(bundle.report["lineage"]),
        "checked": checks.checked,
        "not_checked": [
            {"file": path, "reason": reason} for path, reason in checks.not_checked.items()
        ],
    }


def predict_images(
    folder: Path, names: Sequence[str], *, top: int, device: str, as_json: bool
) -> int:
    """Answer pictures, show the most probable classes of each, and return the exit code.

    That is 0, or the code of the first picture that has no answer; each such one is named. The
    device may be another than the validated one: it answers the golden inputs first.
    """
    bundle, session = _answering(folder, device)
    console = Console()
    problems = Problems(console)
    found = predictions(bundle, session, find_pictures(names, console.say), problems.tell, top)
    if as_json:
        console.data_parts([prediction.to_dict() for prediction in part] for part in found)
    else:
        columns = ("image", "class", "probability")
        console.table_parts(bundle.name, columns, (_prediction_rows(part) for part in found))
    return problems.exit_code


def evaluate_folder(folder: Path, name: str, *, device: str, as_json: bool) -> int:
    """Evaluate a bundle on a labelled folder, show its scores, and return the exit code, as
    ``predict_images`` does.
    """
    bundle, session = _answering(folder, device)
    labelled = labelled_folder(bundle, name)
    console = Console()
    line = left_out_line(labelled.left_out, name)
    if line is not None:
        console.say(line)
    problems = Problems(console)
    try:
        console.stage_begins("evaluate", labelled.num_pictures, 0, "picture")
        found = evaluate(
            bundle,
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
    console.facts(f"{bundle.name} on {shown(name)}", _score_rows(found, bundle.report["accuracy"]))
    rows = class_rows(found)
    more = len(rows) - WORST_SHOWN
    note = f"{more} more classes; --json has all, and the confusion matrix" if more > 0 else ""
    columns = ("class", "images", "recall", "precision", "F1", "mostly taken for")
    console.table("classes, worst first", columns, rows[:WORST_SHOWN], note)
    return problems.exit_code


def _score_rows(found: Mapping[str, Any], validated: Mapping[str, Any]) -> list[tuple[str, str]]:
    low, high = found["accuracy_interval"]
    rows = [
        (
            "accuracy",
            f"{_percent(found['accuracy'])} ({found['correct']} of {found['images']}; "
            f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        ),
        ("balanced accuracy", _percent(found["balanced_accuracy"])),
        ("calibration error", f"{_percent(found['ece'])} (ECE, {NUM_BINS} bins)"),
        ("when validated", f"{_percent(validated['onnx'])} of {validated['test_images']} images"),
        ("device", found["device"]),
    ]
    if found["unanswered"]:
        rows.insert(1, ("without an answer", f"{len(found['unanswered'])}, not counted"))
    return rows


def class_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of a table of classes: lowest recall first, those without pictures last."""
    rows = []
    for index, row in enumerate(found["per_class"]):
        wrong = [0 if other == index else n for other, n in enumerate(found["confusion"][index])]
        most = max(wrong)
        taken = f"{found['labels'][wrong.index(most)]} ({most})" if most else ""
        shares = (_percent(row[key]) for key in ("recall", "precision", "f1"))
        recall = 2.0 if row["recall"] is None else row["recall"]
        rows.append((recall, (row["class"], f"{row['images']:,}", *shares, taken)))
    return [cells for _, cells in sorted(rows, key=lambda pair: pair[0])]


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.2f} %"


def _answering(folder: Path, device: str) -> tuple[Bundle, OnnxSession]:
    """Open a bundle and its model, which answers the golden inputs first."""
    bundle = open_bundle(folder)
    check_preparation(bundle)
    session = open_model(bundle, resolve_device(device))
    check_golden(bundle, session)
    return bundle, session


def _prediction_rows(part: Sequence[Prediction]) -> list[tuple[str, str, str]]:
    return [
        (shown(prediction.image), name, f"{100 * probability:.2f} %")
        for prediction in part
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]


class Problems:
    """Pictures without an answer: told at once, each hint once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._hints: set[str] = set()
        self.exit_code = 0
        """That of the first; 0 for none."""

    def tell(self, error: D2NasError) -> None:
        """Show an error that does not end the command."""
        self.exit_code = self.exit_code or error.exit_code
        hint = None if error.hint in self._hints else error.hint
        self._console.error(str(error), hint, ends=False)
        if error.hint is not None:
            self._hints.add(error.hint)
