"""Side effects of importing libraries: no file under the home folder or in a temporary one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_bundle_reader import bundle_of
from toy import Place


def files_after(folder: Path, *command: str, **environment: str) -> list[str]:
    """Run Python with an empty home and temporary folder; return what is in them afterwards."""
    home, temporary = folder / "home", folder / "temporary"
    home.mkdir()
    temporary.mkdir()
    # Nothing of the caller's: XDG_* moves caches, and the runtime is silent where it takes a
    # variable (GITHUB_ACTIONS, ...) for continuous integration.
    kept = {"PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(
        [sys.executable, *command],
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary), **environment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(path.name for path in (*home.rglob("*"), *temporary.rglob("*")))


@pytest.mark.parametrize("command", ["verify", "predict"])
def test_answering_from_a_bundle_leaves_no_file(
    command: str, finished: Place, tmp_path: Path
) -> None:
    words = [command, str(bundle_of(finished)), "--json"]
    if command == "predict":
        from PIL import Image

        Image.new("L", (9, 7), 80).save(tmp_path / "grey.png")
        words.insert(2, str(tmp_path / "grey.png"))
    assert files_after(tmp_path, "-m", "d2nas", *words) == []


def test_control_a_file_that_is_written_is_found(tmp_path: Path) -> None:
    program = "import pathlib, tempfile; pathlib.Path.home().joinpath('a').touch(); "
    program += "pathlib.Path(tempfile.gettempdir(), 'b').touch()"
    assert files_after(tmp_path, "-c", program) == ["a", "b"]


def test_control_the_runtime_alone_writes_a_device_id(tmp_path: Path) -> None:
    found = files_after(tmp_path, "-c", "import onnxruntime")
    if not found:
        pytest.skip("this build of ONNX Runtime, on this machine, writes no device id")
    assert "deviceid" in found


def test_the_package_that_imports_the_runtime_has_told_it_first(tmp_path: Path) -> None:
    program = "from pipeline.onnx_io.runtime import load_runtime; load_runtime()"
    assert files_after(tmp_path, "-c", program, ORT_DISABLE_TELEMETRY="0") == []


def test_a_log_is_captured_where_no_temporary_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.onnx_io.runtime import captured_log

    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with captured_log() as log:
        os.write(2, b"a reason")
    assert log == ["a reason"]
