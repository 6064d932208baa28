"""Representative samples: a few images for a check, spread by seed over all images and classes.

Image folders come class by class, so that the first images of a set are of one class. Whatever
looks at a part of a set takes its part from here. No torch: what checks a model does not need it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

SAMPLE_RULE = (
    "classes by turns, within a class by SHA-256 of seed/purpose/number: the same for the same "
    "images, and the start of a larger sample"
)


def spread_sample(
    num_images: int,
    count: int,
    *,
    purpose: str,
    seed: int = 0,
    labels: Iterable[int] | None = None,
) -> list[int]:
    """Return ``count`` different indices below ``num_images`` (all, if fewer), in drawn order.

    With ``labels`` (one for each image) the classes take turns until one has no more, so that
    any start of the sample holds as many classes as it can; without, all images count as one class.
    The sample of a smaller ``count`` is the start of a larger one's.
    """
    classes: Mapping[int, Sequence[int]] = {0: range(num_images)}
    if labels is not None:
        classes = _members(labels)
        if sum(len(members) for members in classes.values()) != num_images:
            raise ValueError("there must be a label for each image")
    ranks = {name: _shuffled(members, purpose, seed) for name, members in classes.items()}
    names = _shuffled(list(ranks), f"{purpose}/classes", seed)
    chosen: list[int] = []
    for turn in range(max((len(members) for members in ranks.values()), default=0)):
        if len(chosen) >= count:
            break
        chosen += [ranks[name][turn] for name in names if turn < len(ranks[name])]
    return chosen[:count]


def _members(labels: Iterable[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    return members


def _shuffled(values: Sequence[int], purpose: str, seed: int) -> list[int]:
    def drawn(value: int) -> bytes:
        return hashlib.sha256(f"{seed}/{purpose}/{value}".encode()).digest()

    return sorted(values, key=drawn)
