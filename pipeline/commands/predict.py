"""``d2nas predict``: class names and probabilities of pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .options import BundleArgument, DeviceOption, JsonOption

if TYPE_CHECKING:
    from ..bundle.prediction import Prediction


def predict_command(
    bundle: BundleArgument,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Picture files, folders of them (with all inside), or - for one on stdin.",
        ),
    ],
    top: Annotated[
        int, typer.Option("--top", min=1, max=100_000, help="Classes shown for each.")
    ] = 5,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> int:
    """Answer pictures with a bundle: class names and probabilities.

    Pictures without an answer are named, the others answered; the exit code is that of the first
    that has none.
    """
    from ..bundle.pictures import find_pictures
    from ..bundle.prediction import predictions
    from ..console import Console
    from .answering import Problems, checked_model

    opened, session = checked_model(bundle, device)
    console = Console()
    problems = Problems(console)
    found = predictions(opened, session, find_pictures(pictures, console.say), problems.tell, top)
    if as_json:
        console.data_parts([prediction.to_dict() for prediction in part] for part in found)
    else:
        columns = ("image", "class", "probability")
        console.table_parts(opened.name, columns, (_rows(part) for part in found))
    return problems.exit_code


def _rows(part: "Sequence[Prediction]") -> list[tuple[str, str, str]]:
    from d2nas.data.faults import shown

    return [
        (shown(prediction.image), name, f"{100 * probability:.2f} %")
        for prediction in part
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
