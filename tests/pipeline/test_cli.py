"""The command line's manners: help at once, one-line errors, data apart from messages."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from toy import Place, expect_error

from d2nas.config import build_config
from d2nas.errors import ConfigError
from pipeline.cli import app, run
from pipeline.commands import run as commands

COMMANDS = ["run", "baseline", "search", "derive", "retrain", "export", "validate"]
COMMANDS += ["study", "predict", "evaluate", "push", "ls", "show", "verify", "gc", "doctor"]
COMMANDS += ["serve", "bench", "latency", "presets", "config"]
SUBCOMMANDS = {
    "config": ("cp", "schema"),
    "bench": ("memory", "profile"),
    "latency": ("measure", "show", "predict", "check"),
}
MAX_OPTIONS = 13


def test_the_commands_and_their_options_are_these() -> None:
    group = typer.main.get_command(app)
    assert sorted(group.commands) == sorted(COMMANDS)
    found = [*group.commands.items()]
    for name, subcommands in SUBCOMMANDS.items():
        assert sorted(group.commands[name].commands) == sorted(subcommands)
        found += group.commands[name].commands.items()
    for name, command in found:
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        assert len(options) <= MAX_OPTIONS, name


def test_a_command_is_found_in_the_module_of_its_name() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert command.callback.__module__ == f"pipeline.commands.{name}"


@pytest.mark.parametrize(
    "command",
    [
        [],
        *[[name] for name in COMMANDS],
        *[[group, name] for group, names in SUBCOMMANDS.items() for name in names],
    ],
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys; from pipeline.cli import run; "
        f"code = run({[*command, '--help']!r}); "
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'starlette', 'uvicorn', "
        "'rich', 'PIL', 'd2nas.config'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Usage: d2nas" in done.stdout
    assert "[[" not in done.stdout


def test_help_shows_what_each_command_does_whole(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], *[[name] for name in SUBCOMMANDS]):
        assert run([*arguments, "--help"]) == 0
        assert "..." not in capfd.readouterr().out.partition("Commands:")[2]
    monkeypatch.setenv("COLUMNS", "60")  # control
    assert run(["--help"]) == 0
    assert "..." in capfd.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_outside_of_the_stages_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.commands.show.show_config", interrupt)
    assert run(["show", "--config", "quickstart"]) == 130
    assert capfd.readouterr().err == "error: stopped\n"


def test_tracebacks_are_shown_on_request_and_only_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ConfigError("not so"), RuntimeError("a bug")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("pipeline.commands.show.show_config", fail)
        for words, shows in (([], False), (["--debug"], True), ([], False)):
            run([*words, "show", "--config", "quickstart"])
            assert ("Traceback" in capfd.readouterr().err) == shows


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("d2nas 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quickstrat"], ["quickstrat", "did you mean quickstart?"]),
        (["run", "quickstart", "--set", "retrain.epoch=3"], ["did you mean retrain.epochs?"]),
        (["run", "quickstart", "--set", "retrian.epochs=3"], ["did you mean retrain.epochs?"]),
        (["run", "quickstart", "--set", "retrain.epochs=many"], ["retrain.epochs"]),
        (["run", "quickstart", "--set", "retrain.epochs=1.5"], ["retrain.epochs"]),
        (["run", "quickstart", "--set", "retrain.lr=nan"], ["retrain.lr", "finite"]),
        (["run", "quickstart", "--set", "epochs=3"], ["section.field=value"]),
        (["run", "quickstart", "--set", "search.space=S9"], ["S9"]),
        (["run", "quickstart", "--set", "search.branch_length=9"], ["branch_length"]),
        (["run", "quickstart", "--set", "retrain.auxiliary=true"], ["auxiliary", "8-pixel"]),
        (
            [
                "run",
                "quickstart",
                "--set",
                "retrain.nesterov=true",
                "--set",
                "retrain.momentum=0.0",
            ],
            ["retrain.momentum"],
        ),
        (
            ["run", "cifar10", "--set", "retrain.num_cells=1"],
            ["retrain.auxiliary", "retrain.num_cells"],
        ),
        (
            ["run", "cifar10", "--set", "retrain.batch_size=1"],
            ["retrain.auxiliary", "retrain.batch_size"],
        ),
        (["run", "quickstart", "--set", "search.arch_beta1=1.0"], ["search.arch_beta1"]),
        (
            [
                "search",
                "quickstart",
                "--method",
                "darts-second-order",
                "--set",
                "search.precision=bf16",
            ],
            ["search.precision"],
        ),
        (
            ["search", "quickstart", "--method", "entangled", "--set", "search.branch_length=1"],
            ["search.branch_length", "entangled"],
        ),
        (["search", "cifar10", "--data-root", "nowhere-at-all"], ["nowhere-at-all"]),
        (["run", "folder", "--data-root", "nowhere-at-all"], ["nowhere-at-all"]),
        (["run", "folder"], ["--data-root"]),
        (["run", "missing.toml"], ["missing.toml"]),
        (["run", "tests"], ["tests is a folder", "d2nas run folder --data-root tests"]),
        (["run", "quickstart", "--name", "../evil"], ["../evil"]),
        (["run", "quickstart", "--frsh"], ["--frsh", "d2nas run --help"]),
        (["run"], ["PRESET", "d2nas run --help"]),
        (["bench", "memry"], ["memry", "d2nas bench --help"]),
        (["search", "quickstart", "--method", "gdass"], ["search.method", "did you mean gdas?"]),
        (
            ["run", "quickstart", "--set", "search.device=gpu"],
            ["search.device", "auto, cpu, cuda or cuda:N"],
        ),
        (["derive", "nothing"], ["nothing", "quickstart"]),
        (["show", "nothing"], ["nothing"]),
        (["show"], ["TARGET"]),
        (["ls", "nothing"], ["nothing"]),
    ],
)
def test_bad_calls_give_one_line_a_hint_and_code_2(
    capfd: pytest.CaptureFixture[str], place: Place, arguments: list[str], words: list[str]
) -> None:
    error = expect_error(capfd, place, 2, *arguments)
    for word in words:
        assert word in error
    assert not Path("nowhere-at-all").exists()


def test_an_empty_store_verifies_and_lists_nothing(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    place.store.mkdir()
    assert place.json(capfd, "verify") == {"checked": 0, "damaged": []}
    assert place.json(capfd, "ls") == []
    assert place.json(capfd, "gc") == []
    assert place.run("ls") == place.run("gc") == 0
    talk = capfd.readouterr().err
    assert "d2nas run quickstart makes the first ones" in talk
    assert "nothing to remove" in talk


def test_without_arguments_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *[[name] for name in SUBCOMMANDS]):
        assert run(arguments) == 0
        captured = capfd.readouterr()
        assert "Commands:\n" in captured.out
        assert captured.err == ""


def test_none_is_a_word_where_a_field_has_it_and_nothing_elsewhere() -> None:
    found = build_config({}, ["search.recompute=none", "data.image_size=none"])
    assert found.search.recompute == "none"
    assert found.data.image_size is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 6),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6),
        (ImportError("libx.so: failed to map segment from shared object"), 6),
        (ImportError("libx.so: cannot allocate memory in static TLS block"), 6),
        (ImportError("No module named 'x'"), 1),
        (ModuleNotFoundError("No module named 'd2nas.x'", name="d2nas.x"), 1),
        (OSError(errno.EIO, "Input/output error"), 7),
    ],
)
def test_memory_that_runs_out_anywhere_is_6(
    error: Exception,
    code: int,
    place: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(commands, "run_all", fail)
    told = expect_error(capfd, place, code, "run", str(place.preset))
    assert ("out of memory" in told, "bug in d2nas" in told) == (code == 6, code == 1)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EACCES, "Permission denied", "a/file"), 7, "a/file: Permission denied"),
        (OSError(errno.EXDEV, "Cross-device link", b"a", None, "b"), 7, "a -> b: Cross-device"),
        (OSError(errno.EMFILE, "Too many open files"), 7, "ulimit -n"),
        (OSError("no number"), 7, "no number"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), 7, "No such file"),
        (TimeoutError(), 7, "TimeoutError"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", "lock"), 8, "lock"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "no"), 2, "caf\\udce9"),
        (RuntimeError("Could not determine home directory."), 2, "HOME"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 2, "onnx>="),
        (ModuleNotFoundError("No module named 'rich.x'", name="rich.x"), 2, "rich>="),
        (ImportError("cannot import name 'x'", name="numpy.x"), 2, "needs numpy>="),
        (ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn"), 2, "'.[serve]'"),
        (ModuleNotFoundError("No module named 'quux'", name="quux"), 2, "quux"),
        (KeyboardInterrupt(), 130, "stopped"),
        (RuntimeError("something else"), 1, "this is a bug"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), 1, "this is a bug"),
    ],
)
def test_what_the_system_and_libraries_raise_is_told_for_what_it_is(
    error: BaseException,
    code: int,
    words: str,
    place: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(commands, "run_all", fail)
    told = expect_error(capfd, place, code, "run", str(place.preset))
    assert words in told
    assert (code == 1) == ("bug" in told)


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("ModuleNotFoundError(\"No module named 'typer'\", name='typer')", 2, "typer>="),
        ("OSError(5, 'Input/output error', 'cli.py')", 7, "cli.py: Input/output error"),
        ("KeyboardInterrupt()", 130, ""),
    ],
)
def test_what_fails_before_the_command_line_is_there_is_told_too(
    failure: str, code: int, words: str
) -> None:
    script = (
        "import importlib.abc, sys\n"
        "class Fails(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        f"            raise {failure}\n"
        "sys.meta_path.insert(0, Fails())\n"
        "from d2nas.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("pid", "code"), [(1, 128 + signal.SIGTERM), (2, 0)])
def test_a_containers_first_process_is_stopped_while_it_loads(pid: int, code: int) -> None:
    """With a handler, that is, as the system gives it no default action: SIG_IGN here."""
    script = (
        "import importlib.abc, os, signal, sys\n"
        "own = os.getpid()\n"
        f"os.getpid = lambda: {pid}  # 2 is the control\n"
        "class Stops(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:\n"
        "                signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "            os.kill(own, signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Stops())\n"
        "sys.argv[1:] = ['--version']\n"
        "from d2nas.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def test_too_little_memory_for_the_libraries_is_6(tmp_path: Path) -> None:
    half_a_gib = 2**29
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({half_a_gib},) * 2); "
        f"from pipeline.cli import run; raise SystemExit(run(['run', 'quickstart', '--store', "
        f"{str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr
