"""Data sets in the form of the library ``datasets``: on the Hugging Face Hub, or in a folder.

    hf:OWNER/NAME
    hf:FOLDER           what save_to_disk wrote, or Parquet files
    hf:OWNER/NAME?config=C&revision=R&image=COLUMN&label=COLUMN      any of these, where needed

Their images are written once, as they are, below the data folder, and are from then on files like
any others. What was fetched stays as it is: another ``revision`` is another data set.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from ..errors import ConfigError, StorageError
from ..telemetry import disable_hub_telemetry
from .faults import shown
from .image_writer import MANIFEST, ImageWriter, written_images

PREFIX = "hf:"
_KEYS = ("config", "revision", "image", "label")
_FORM = "hf:OWNER/NAME or hf:FOLDER, with ?config=, revision=, image=, label= where needed"
_PARTS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}
_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
"""What loading raises for files, for their content and for the network."""
_SAVED = ("dataset_dict.json", "state.json")


class _Source(NamedTuple):
    place: str
    keys: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        return self.place.startswith(("/", ".", "~")) or os.path.isdir(self.place)

    @property
    def folder(self) -> Path:
        return Path(self.place).expanduser()


def is_hub(root: str) -> bool:
    """Tell whether ``data.root`` is a data set for ``datasets``."""
    return root.startswith(PREFIX)


def hub_folder(root: str, place: Path) -> Path:
    """Return where the images of a data set are, or will be, below the data folder ``place``.

    Of a local one that has changed it is another place. Raises ``ConfigError`` for a ``root`` of
    another form or a local folder that is not there.
    """
    source = _source(root)
    keys = "".join(f"-{key}={source.keys[key]}" for key in _KEYS if key in source.keys)
    if not source.is_local:
        readable = re.sub(r"[^\w.=-]", "_", source.place.replace("/", "--") + keys)
        return place / "hf" / f"{readable[:100]}-{_digest(root)}"
    try:
        state = "\n".join(_states(source.folder))
        where = os.path.abspath(source.folder)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{shown(source.place)}: {error}") from error
    if not state:
        hint = "hf:FOLDER names one that save_to_disk wrote, or one of Parquet files"
        raise ConfigError(f"{shown(source.place)}: no such folder, or an empty one", hint=hint)
    name = re.sub(r"[^\w.-]", "_", os.path.basename(where))
    return place / "hf" / f"{name[:100]}-{_digest(f'{where}{keys}{state}')}"


def hub_manifest(root: str, place: Path) -> Path:
    """Return the manifest of a data set's images, which are written below the data folder ``place``
    if they are not there.

    Raises ``ConfigError`` where ``datasets`` is missing or cannot load it, where image and label
    are not to be told by type, and for labels that are missing; ``StorageError``.
    """
    folder = hub_folder(root, place)
    if not (folder / MANIFEST).is_file():
        source = _source(root)
        with _loaded(source, folder.parent) as splits, written_images(folder) as writer:
            _write(source, splits, writer)
    return folder / MANIFEST


def _source(root: str) -> _Source:
    place, mark, query = root.removeprefix(PREFIX).partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    source = _Source(place, dict(pairs))
    is_valid = all(key in _KEYS and value for key, value in pairs) and bool(pairs) == bool(mark)
    if not is_valid or len(source.keys) < len(pairs):
        raise ConfigError(f"data.root={shown(root)}: invalid after the ?", hint=_FORM)
    if "\0" in place or not (source.is_local or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place)):
        raise ConfigError(f"data.root={shown(root)}: invalid name", hint=_FORM)
    if source.is_local and {"config", "revision"} & source.keys.keys():
        raise ConfigError(f"data.root={shown(root)}: a folder has no config or revision")
    return source


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def _states(folder: Path) -> Iterator[str]:
    """Yield what changes when a file of a folder does, in a fixed order."""
    for current, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            status = os.stat(os.path.join(current, name))
            inside = os.path.relpath(os.path.join(current, name), folder)
            yield f"{inside}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"


@contextlib.contextmanager
def _loaded(source: _Source, place: Path) -> Iterator[dict[str, Any]]:
    """Give the data set's splits by their names; ``place`` is for what must be unpacked."""
    datasets = _datasets()
    where = shown(source.place)
    quiet = source.is_local and not datasets.utils.are_progress_bars_disabled()
    with contextlib.ExitStack() as stack:
        if quiet:
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        try:
            if not source.is_local:
                config, revision = source.keys.get("config"), source.keys.get("revision")
                found = datasets.load_dataset(source.place, config, revision=revision)
            elif any((source.folder / name).is_file() for name in _SAVED):
                found = datasets.load_from_disk(str(source.folder))
            else:
                place.mkdir(parents=True, exist_ok=True)
                scratch = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=place)
                cache = stack.enter_context(scratch)
                found = datasets.load_dataset(str(source.folder), cache_dir=cache)
            yield dict(found) if isinstance(found, dict) else {"train": found}
        except (*_ERRORS, datasets.exceptions.DatasetsError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"{where}: datasets cannot load it: {shown(lines[0])[:300]}",
                hint="with several configurations: hf:NAME?config=...; a folder: hf:./FOLDER",
            ) from error


def _write(source: _Source, splits: Mapping[str, Any], writer: ImageWriter) -> None:
    """Write all splits of names that are known and in which images have labels, which those of
    published tests often have not; note the others.
    """
    datasets, where = _datasets(), shown(source.place)
    if "train" not in splits:
        names = shown(", ".join(map(str, splits)))
        raise ConfigError(f"{where}: no split train, but {names}", hint="give one of that name")
    features = splits["train"].features
    image = _column(source, features, "image", datasets.Image)
    label = _column(source, features, "label", datasets.ClassLabel, datasets.Value)
    home = Path(datasets.config.HF_CACHE_HOME)  # which holds a token, too
    inside = [source.folder] if source.is_local else [home / "hub", home / "datasets"]
    for name, split in splits.items():
        labels: list[str | None] = []
        if label in split.features:
            labels = [_label(split.features[label], value) for value in split[label]]
        if name not in _PARTS or not any(labels):
            reason = "no label" if name in _PARTS else "neither training, validation nor test"
            writer.remark(f"split {name} of {where} is left out: {len(split)} images, {reason}")
            continue
        rows = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        for number, (row, text) in enumerate(zip(rows, labels, strict=True)):
            content = _content(row[image], inside)
            if content is None or text is None:
                what = "image" if content is None else "label"
                raise ConfigError(
                    f"{where}: row {number} of {name} has no {what}",
                    hint="leave such rows out of the data set",
                )
            writer.write(_PARTS[name], text, content)


def _column(source: _Source, features: Mapping[str, Any], key: str, *kinds: type) -> str:
    """Return the column that was named, of any of ``kinds``, or the only one of the first."""
    given = source.keys.get(key)
    kind = kinds[0]
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    named = [name for name, feature in features.items() if isinstance(feature, kinds)]
    if given in named:
        assert given is not None
        return given
    if given is None and len(found) == 1:
        return found[0]
    reason = f"{'several columns' if found else 'no column'} of type {kind.__name__}"
    if given is not None:
        reason = f"no {key} column {shown(given)}"
    every = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    raise ConfigError(
        f"{shown(source.place)}: {reason}: {shown(every)[:300]}",
        hint=f"choose one: hf:...?{key}=COLUMN",
    )


def _label(feature: Any, value: Any) -> str | None:
    if value is None or not hasattr(feature, "names"):
        return None if value is None else str(value)
    return None if value < 0 else str(feature.names[value])


def _content(value: Any, inside: list[Path]) -> bytes | None:
    """Return the bytes of an image's file; of a path only below folders of the data set."""
    if value is None:
        return None
    content: bytes | None = value["bytes"]
    if content is None and value["path"]:
        path = Path(value["path"]).resolve()
        if any(path.is_relative_to(folder.resolve()) for folder in inside) and path.is_file():
            content = path.read_bytes()
    return content


def _datasets() -> ModuleType:
    disable_hub_telemetry()
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data of hf: need the package datasets, which is missing",
            hint="pip install '.[hf]' in the clone",
        ) from None
    found: ModuleType = datasets
    return found
