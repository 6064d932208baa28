"""Side effects of importing libraries: no file in home or temporary folders, no socket, no talk."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from bundles import bundle_of
from children import PROJECT
from image_files import write_classes
from no_network import NO_FILTER
from served import ask_once, serving
from tiny import TinyPlace
from toy import Place

from d2nas.errors import ConfigError

WITHOUT_NETWORK = str(PROJECT / "tests/support" / "no_network.py")
LIBRARY_TALK = re.compile(r"\w+Warning:|warn\(|site-packages|^\[|^[WEI]\d{4} |^\d{4}-\d\d-\d\d")
QUICK = tuple(
    word
    for setting in ("search.epochs=1", "search.warmup_epochs=0", "retrain.epochs=1")
    for word in ("--set", setting)
)


@dataclass(frozen=True)
class Nest:
    """Empty folders for all that a program finds by itself: home, temporary and working folder."""

    folder: Path

    def __post_init__(self) -> None:
        for path in self.paths.values():
            path.mkdir()

    @property
    def paths(self) -> dict[str, Path]:
        kinds = ("CACHE_HOME", "CONFIG_HOME", "DATA_HOME", "STATE_HOME", "RUNTIME_DIR")
        names = ("HOME", "TMPDIR", "PWD", *(f"XDG_{kind}" for kind in kinds))
        return {name: self.folder / name.lower() for name in names}

    @property
    def environment(self) -> dict[str, str]:
        # Nothing else of the caller's: the runtime is silent where it takes a variable
        # (GITHUB_ACTIONS, ...) for continuous integration.
        kept = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(PROJECT)}
        return kept | {name: str(path) for name, path in self.paths.items()}

    def found(self) -> list[str]:
        """The names of what is in the folders."""
        return sorted(file.name for path in self.paths.values() for file in path.rglob("*"))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python to its end, in the working folder."""
        done = subprocess.run(
            [sys.executable, *command],
            env=self.environment | environment,
            cwd=self.paths["PWD"],
            capture_output=True,
            text=True,
        )
        if done.returncode == NO_FILTER:
            pytest.skip("this kernel takes no filter of system calls")
        return done


@pytest.fixture
def nest(quick_path: Path) -> Nest:
    (quick_path / "nest").mkdir()
    return Nest(quick_path / "nest")


@pytest.mark.parametrize("command", ["verify", "predict", "evaluate"])
def test_answering_from_a_bundle_leaves_nothing_and_asks_nobody(
    command: str, finished: Place, nest: Nest, tmp_path: Path
) -> None:
    words = [command, str(bundle_of(finished)), "--json"]
    if command != "verify":
        pictures = write_classes(tmp_path / "pictures", dict.fromkeys("0123456789", 1), mode="L")
        words.insert(2, str(pictures / "7" if command == "predict" else pictures))
    done = nest.run(WITHOUT_NETWORK, "-m", "d2nas", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert nest.found() == []


def test_a_server_leaves_nothing_and_has_no_socket_but_its_own(finished: Place, nest: Nest) -> None:
    program = (WITHOUT_NETWORK, "--may-listen", "-m", "d2nas")
    nest.run(WITHOUT_NETWORK, "-c", "")  # or skip
    with serving(
        bundle_of(finished),
        *("--device", "cpu"),
        program=program,
        env=nest.environment,
        cwd=nest.paths["PWD"],
    ) as (process, url, said):
        assert ask_once(url, "GET", "/v2/health/ready").status == 200
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate()
    assert (process.returncode, out, rest) == (0, "", "stopped\n")
    assert [line.split()[0] for line in said] == ["toy,", "listening", "ready"]
    assert nest.found() == []


def test_a_finished_run_leaves_nothing_and_asks_nobody(finished: Place, nest: Nest) -> None:
    words = finished.arguments("run", str(finished.preset), "--json")
    done = nest.run(WITHOUT_NETWORK, "-m", "d2nas", *words)
    assert done.returncode == 0, done.stderr
    assert all(": up to date (toy/" in line for line in done.stderr.splitlines()[:5])
    assert nest.found() == []


def test_a_run_of_all_stages_leaves_nothing_and_asks_nobody(nest: Nest, quick_path: Path) -> None:
    place = TinyPlace(quick_path)
    words = place.arguments("run", str(place.preset), *QUICK)
    done = nest.run(WITHOUT_NETWORK, "-m", "d2nas", *words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if LIBRARY_TALK.search(line)] == []
    assert nest.found() == []


MAKES_AN_OPTIMIZER = """
import tempfile, torch
from d2nas.train.loop import adam, sgd
tempfile.tempdir = "/proc/nowhere"  # as in a container whose file system cannot be written
for made in (
    sgd(torch.nn.Linear(1, 1), lr=1.0, momentum=0.5, weight_decay=0.0),
    adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.9), weight_decay=0.0),
):
    made.zero_grad()
from torch._inductor import compiler_bisector  # as the exporter does
import os
assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
"""


JOINS_OTHERS = """
import tempfile, torch
from torch import distributed
from d2nas.parallel import Ranks
tempfile.tempdir = "/proc/nowhere"
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
Ranks(0, 2).wrap(torch.nn.Linear(1, 1))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("program", [MAKES_AN_OPTIMIZER, JOINS_OTHERS], ids=["optimizer", "ranks"])
def test_what_torch_imports_by_itself_needs_no_temporary_folder(program: str, nest: Nest) -> None:
    done = nest.run("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert nest.found() == []


# --- controls -----------------------------------------------------------------------------------


def test_control_without_our_import_torch_leaves_a_folder(nest: Nest) -> None:
    program = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])"
    assert nest.run("-c", program).returncode == 0
    if not nest.found():
        pytest.skip("this PyTorch makes no folder")
    assert [name.partition("_")[0] for name in nest.found()] == ["torchinductor"]


def test_control_a_file_that_is_written_is_found(nest: Nest) -> None:
    program = "import pathlib, tempfile; pathlib.Path.home().joinpath('a').touch(); "
    program += "pathlib.Path(tempfile.gettempdir(), 'b').touch(); pathlib.Path('c').touch()"
    assert nest.run("-c", program).returncode == 0
    assert nest.found() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import threading, socket; t = threading.Thread(target=socket.socket); t.start(); t.join()",
    ],
    ids=["socket", "thread"],
)
def test_control_who_asks_for_the_network_is_ended(program: str, nest: Nest) -> None:
    assert nest.run("-c", program).returncode == 0
    assert nest.run(WITHOUT_NETWORK, "-c", program).returncode == -signal.SIGSYS


def test_control_a_server_that_asks_for_more_than_its_socket_is_ended(nest: Nest) -> None:
    own = "import socket; own = socket.create_server(('127.0.0.1', 0)); "
    more = ("", "socket.create_connection(own.getsockname())", "socket.socket(type=2)")
    codes = [
        nest.run(WITHOUT_NETWORK, "--may-listen", "-c", own + rest).returncode for rest in more
    ]
    assert codes == [0, -signal.SIGSYS, -signal.SIGSYS]


@pytest.fixture
def telemetry_at_import(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the environment says of the Hub's telemetry at each import of a library that can
    report to it; none of them is there.
    """
    libraries, variable = ("datasets", "huggingface_hub", "timm"), "HF_HUB_DISABLE_TELEMETRY"
    told: list[str | None] = []

    class Absent(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] in libraries:
                told.append(os.environ.get(variable))
                raise ModuleNotFoundError(name)

    for name in [*sys.modules]:
        if name.partition(".")[0] in libraries:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    monkeypatch.setenv(variable, "")  # so that it is as before in the end
    monkeypatch.delenv(variable)
    return told


def import_datasets() -> None:
    from d2nas.data.hub import hub_manifest

    hub_manifest("hf:someone/images", Path("nowhere"))


def import_timm_to_train() -> None:
    from d2nas.nn.library_network import LibraryNetwork

    LibraryNetwork("timm:resnet18", num_classes=2, in_channels=3)


def import_timm_to_teach() -> None:
    import torch

    from d2nas.config import RetrainConfig
    from pipeline.teacher.models import open_model
    from pipeline.teacher.source import Source

    open_model(Source("timm", "resnet18"), RetrainConfig(), torch.device("cpu"), 2)


def import_client_to_push() -> None:
    from pipeline.publishing.hub import _connect

    _connect()


@pytest.mark.parametrize(
    "imports", [import_datasets, import_timm_to_train, import_timm_to_teach, import_client_to_push]
)
def test_libraries_of_the_hub_are_told_first_to_report_nothing(
    imports: Callable[[], None],
    telemetry_at_import: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wanted in ("1", "0"):  # by itself, and as the environment says
        with pytest.raises((ImportError, ConfigError)):
            imports()
        assert telemetry_at_import == [wanted]
        telemetry_at_import.clear()
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")


def test_control_the_runtime_alone_writes_a_device_id(nest: Nest) -> None:
    assert nest.run("-c", "import onnxruntime").returncode == 0
    if not nest.found():
        pytest.skip("this build of ONNX Runtime, on this machine, writes no device id")
    assert "deviceid" in nest.found()


def test_the_package_that_imports_the_runtime_has_told_it_first(nest: Nest) -> None:
    program = "from pipeline.onnx_io.runtime import load_runtime; load_runtime()"
    assert nest.run("-c", program, ORT_DISABLE_TELEMETRY="0").returncode == 0
    assert nest.found() == []


def test_a_log_is_captured_where_no_temporary_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.onnx_io.runtime import captured_log

    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with captured_log() as log:
        os.write(2, b"a reason")
    assert log == ["a reason"]
