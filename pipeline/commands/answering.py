"""A bundle that answers pictures, and the pictures without an answer: of predict and evaluate."""

from pathlib import Path

from d2nas.errors import D2NasError

from ..bundle.prediction import check_golden, check_preparation, open_model
from ..bundle.reader import Bundle, open_bundle
from ..console import Console
from ..onnx_io.providers import runtime_device
from ..onnx_io.session import OnnxSession


def checked_model(folder: Path, device: str) -> tuple[Bundle, OnnxSession]:
    """Open a bundle and its model, which answers the golden inputs first.

    The device may be another than the validated one.
    """
    bundle = open_bundle(folder)
    check_preparation(bundle)
    session = open_model(bundle, runtime_device(device))
    check_golden(bundle, session)
    return bundle, session


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
