"""Evaluation of a bundle on a labelled folder: a folder for each class, named as its label.

Pictures are read and answered as for ``predict``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2nas.data.faults import shown
from d2nas.data.folders import SPLITS, PictureListing
from d2nas.errors import ConfigError, D2NasError
from d2nas.measure.scores import Scores, softmax

from ..onnx_io.session import OnnxSession
from .nearby import named
from .pictures import Picture, listing_of
from .prediction import answers
from .reader import Bundle


@dataclass(frozen=True)
class LabelledFolder:
    """The pictures of a folder whose folders are classes of a bundle."""

    listing: PictureListing
    classes: Mapping[str, int]
    """The label of each class folder that is there."""
    num_pictures: int
    left_out: Counter[str]
    """Files of other types by suffix, and pictures outside the class folders."""

    def pictures(self) -> Iterator[Picture | D2NasError]:
        """Yield the pictures in class folders, and errors for those that cannot be read."""
        for path, problem in self.listing.pictures:
            if problem is not None:
                yield problem
            elif "/" in path:
                yield Picture(self.listing.root / path)

    def label_of(self, picture: Picture) -> int:
        """Return the label of one of ``pictures``."""
        assert picture.path is not None
        return self.classes[picture.path.relative_to(self.listing.root).parts[0]]


def labelled_folder(bundle: Bundle, name: str) -> LabelledFolder:
    """List a labelled folder.

    Raises ``ConfigError`` where it has no class folders, or one that is no class of the bundle,
    ``StorageError`` where it cannot be listed.
    """
    listing = listing_of(name)
    if listing is None:
        raise ConfigError(f"{shown(name)}: not a folder", hint="expected DIR/<class>/*")
    labels = labels_by_folder(bundle)
    known = f"its classes: {named(list(bundle.labels))}"
    if not listing.folders:
        raise ConfigError(
            f"{shown(name)}: no folders of classes; {known}", hint="expected DIR/<class>/*"
        )
    unknown = [folder for folder in listing.folders if folder not in labels]
    if unknown:
        split = next((folder for folder in ("test", *SPLITS) if folder in unknown), None)
        raise ConfigError(
            f"{shown(name)}: no classes of {bundle.name}: {named(unknown)}; {known}",
            hint="name each folder as its class in labels.txt, and move others away"
            if split is None
            else f"one split is evaluated: {shown(listing.root / split)}",
        )
    left_out = Counter(listing.left_out)
    outside = sum("/" not in path for path, problem in listing.pictures if problem is None)
    if outside:
        left_out["pictures outside the class folders"] += outside
    classes = {folder: labels[folder] for folder in listing.folders}
    return LabelledFolder(listing, classes, len(listing.pictures) - outside, left_out)


def labels_by_folder(bundle: Bundle) -> dict[str, int]:
    """Return the label of each folder name: a class's name as it was in training, or, of names
    with unusual spaces, as ``labels.txt`` has it.
    """
    names: Sequence[str] = bundle.preprocess["class_names"]
    labels = {name: label for label, name in enumerate(bundle.labels)}
    return labels | {name: label for label, name in enumerate(names)}


def evaluate(
    bundle: Bundle,
    session: OnnxSession,
    folder: LabelledFolder,
    failed: Callable[[D2NasError], None],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Return a bundle's scores on a labelled folder, as JSON data.

    Pictures without an answer go to ``failed``; ``advance`` hears how many were tried. Raises
    where no picture is answered: an error of the first one's kind.
    """
    scores = Scores(len(bundle.labels))
    unanswered: list[D2NasError] = []

    def refused(error: D2NasError) -> None:
        unanswered.append(error)
        failed(error)

    for part, logits in answers(bundle, session, folder.pictures(), refused):
        labels = np.array([folder.label_of(picture) for picture in part], np.int64)
        scores.add(labels, softmax(logits))
        advance(scores.num_images + len(unanswered))
    if not scores.num_images:
        kind = type(unanswered[0]) if unanswered else ConfigError
        raise kind(f"{shown(folder.listing.root)}: no picture of a class was answered")
    return {
        "bundle": bundle.name,
        "version": bundle.number,
        "digest": bundle.digest,
        "device": session.device.label,
        **scores.to_dict(bundle.labels),
        "unanswered": [str(error) for error in unanswered],
        "left_out": dict(folder.left_out),
    }
