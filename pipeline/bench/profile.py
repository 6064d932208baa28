"""``bench profile``: which model is meant, and what is shown of its profile."""

from pathlib import Path

from d2nas.errors import ConfigError

from ..bundle.nearby import bundles_near, is_bundle, no_bundle
from ..bundle.reader import open_bundle
from ..onnx_io import MODEL_FILE
from ..onnx_io.profile import Profile, operation_of
from ..stages import open_store
from .profile_drawing import draw_profile

TOP_PLACES = 20


def find_model(target: str, store: Path) -> tuple[str, bytes]:
    """Return the name and bytes of a model: a .onnx file, a bundle's folder, a run, or a version.

    Of a bundle the model that it serves is taken, once all of it was checked; of any other folder
    the highest number; of a run the newest export. Raises ``ConfigError`` if there is none, and
    what opening a bundle or a version raises.
    """
    path = Path(target)
    if is_bundle(path):
        bundle = open_bundle(path)
        return str(path / str(bundle.number) / MODEL_FILE), bundle.model
    if path.is_dir():
        if bundles_near(path):
            raise no_bundle(path)
        numbers = [int(entry.name) for entry in path.iterdir() if entry.name.isdecimal()]
        path = path / str(max(numbers, default=0)) / MODEL_FILE
    if path.suffix == ".onnx":
        try:
            return str(path), path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None
    versions = open_store(store)
    version = versions.open(target) if "/" in target else versions.latest(target, "export")
    if version is None or version.manifest.kind != "export":
        raise ConfigError(
            f"{target!r} has no exported model",
            hint="give a .onnx file, a bundle's folder, a run, or RUN/export@vN",
        )
    return str(version.reference), version.read(MODEL_FILE)


def attribution_note(profile: Profile) -> str:
    """Say in one line how much of the time was placed, and how."""
    data = profile.to_dict()
    unknown, moved = data["unattributed"]["share"], data["by_neighbour"]["share"]
    return (
        f"batch {profile.batch}, {profile.runs} runs, sum of kernels {profile.total_ms:.2f} ms; "
        f"unattributed {100 * unknown:.1f} %, changes of layout {100 * moved:.1f} % "
        "(counted at their neighbours)"
    )


def tables(profile: Profile) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Return (title, columns, rows) by cell, by place (the slowest ones) and by operation."""
    grouped = {
        "cell": profile.by_cell(),
        "place": profile.by_edge()[:TOP_PLACES],
        "operation": profile.by_operation(),
    }
    return [
        (
            f"time by {column}" + (f", the slowest {TOP_PLACES}" if column == "place" else ""),
            (column, "ms", "share"),
            [(row[column], f"{row['ms']:.3f}", f"{100 * row['share']:.1f} %") for row in rows],
        )
        for column, rows in grouped.items()
    ]


def draw(profile: Profile, name: str) -> str:
    """Return the picture: a bar for each cell, in it its edges."""
    bars: dict[str, list[tuple[str, str, float]]] = {row["cell"]: [] for row in profile.by_cell()}
    for row in sorted(profile.by_edge(), key=lambda row: str(row["place"])):
        place = str(row["place"])
        bars[place.split("/")[0]].append((operation_of(place), place, row["ms"]))
    unknown = profile.to_dict()["unattributed"]["ms"]
    if unknown:
        bars["unattributed"] = [("unattributed", "unattributed", unknown)]
    return draw_profile(
        bars, title=f"{name} on {profile.device.label}", note=attribution_note(profile)
    )
