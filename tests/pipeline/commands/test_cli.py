"""The command line's manners: help at once, one-line errors, data apart from talk."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from PIL import Image
from toy import Place

from d2nas.config import METHOD_NAMES, build_config
from pipeline.cli import app, run
from pipeline.commands import run as commands
from pipeline.preflight import doctor

COMMANDS = ["run", "search", "derive", "retrain", "export", "validate"]
COMMANDS += ["study", "predict", "evaluate", "ls", "show", "verify", "gc", "doctor"]
COMMANDS += ["serve", "bench"]
BENCH_COMMANDS = ("memory", "profile")
MAX_OPTIONS = 11


def expect_error(
    capfd: pytest.CaptureFixture[str], place: Place, code: int, *arguments: str
) -> str:
    """Run; expect the code, one error line with one hint line, nothing on stdout, no version."""
    capfd.readouterr()
    assert place.run(*arguments) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert sum(line.startswith("hint: ") for line in lines) <= 1
    assert "Traceback" not in captured.err
    versions = place.store / "versions"
    assert not versions.exists() or not list(versions.iterdir())
    return captured.err


def test_the_commands_and_their_options_are_these() -> None:
    group = typer.main.get_command(app)
    assert sorted(group.commands) == sorted(COMMANDS)
    bench = group.commands["bench"]
    assert sorted(bench.commands) == sorted(BENCH_COMMANDS)
    for name, command in [*group.commands.items(), *bench.commands.items()]:
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        assert len(options) <= MAX_OPTIONS, name


@pytest.mark.parametrize(
    "command", [[], *[[name] for name in COMMANDS], *[["bench", name] for name in BENCH_COMMANDS]]
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys; from pipeline.cli import run; "
        f"code = run({[*command, '--help']!r}); "
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'starlette', 'uvicorn'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Usage: d2nas" in done.stdout


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_outside_of_the_stages_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.commands.show.show_config", interrupt)
    assert run(["show", "--config", "quickstart"]) == 130
    assert capfd.readouterr().err == "error: stopped\n"


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


def test_a_folder_with_one_class_is_refused(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    (images / "cat").mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (9, 12), (index, 0, 0)).save(images / "cat" / f"{index}.png")
    error = expect_error(capfd, place, 2, "run", "folder", "--data-root", str(images))
    assert "class" in error


def test_a_folder_of_anyones_images_is_searched(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label, colour in (("cat", 40), ("dog", 200)):
        (images / label).mkdir(parents=True)
        for index in range(30 if label == "cat" else 5):
            shade = (colour, colour, (7 * index) % 255)
            Image.new("RGB", (20 + index, 31), shade).save(images / label / f"{index}.png")
    settings = ["data.name=folder", "data.image_size=13", "search.batch_size=8"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    code = place.run("search", str(place.preset), *arguments, "--data-root", str(images))
    error = capfd.readouterr().err
    assert code == 0, error
    assert "2 classes, 3 x 13 x 13 pixels" in error
    assert "cat 24, dog 4" in error
    assert "warning: imbalanced" in error


def test_control_the_same_folder_balanced_gives_no_warning(
    capfd: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for label, colour in (("cat", 40), ("dog", 200)):
        (images / label).mkdir(parents=True)
        for index in range(8):
            shade = (colour, colour, 7 * index)
            Image.new("RGB", (20, 31), shade).save(images / label / f"{index}.png")
    settings = ["data.name=folder", "data.image_size=13", "search.batch_size=4"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert place.run("search", str(place.preset), *arguments, "--data-root", str(images)) == 0
    assert "imbalanced" not in capfd.readouterr().err


def test_a_plan_runs_nothing(capfd: pytest.CaptureFixture[str], place: Place) -> None:
    plan = place.json(capfd, "run", str(place.preset), "--plan")
    assert plan["executes"] == ["search", "derive", "retrain", "export", "validate"]
    search, retrain = plan["stages"][0], plan["stages"][2]
    assert search["steps"] == 2 * (719 // 128)
    assert retrain["steps"] == 3 * (1438 // 128)
    for row in (search, retrain):
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 0
        assert row["disk_bytes"] > 0
    assert not (place.store / "versions").exists()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_plan_knows_what_the_search_will_do(
    capfd: pytest.CaptureFixture[str], place: Place, method: str
) -> None:
    sets = [
        f"search.method={method}",
        "search.init_channels=8",
        "search.warmup_epochs=1",
        "search.image_fraction=0.5",
        "data.train_images=600",
        "data.evaluation=held-out",
        "data.held_out_images=500",
    ]
    sets = [word for setting in sets for word in ("--set", setting)]
    plan = place.json(capfd, "run", str(place.preset), "--plan", *sets)
    planned, retrain = plan["stages"][0], plan["stages"][2]
    assert retrain["steps"] == 3 * (600 // 128)
    version = place.json(capfd, "search", str(place.preset), *sets)
    assert planned["steps"] == version["facts"]["steps"]
    assert planned.get("passes", 0) == version["facts"]["passes"]
    assert (planned.get("peak_bytes", 0) > 0) == (method != "random")


def test_doctor_tells_what_loads_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    findings = {finding["subject"]: finding for finding in json.loads(capfd.readouterr().out)}
    assert findings["python"]["state"] == "ok"
    assert findings["data digits"]["state"] == "ok"
    assert findings["ONNX Runtime on CPU"]["state"] == "ok"
    assert "GiB" in findings["free space"]["detail"]
    for finding in findings.values():
        assert finding["state"] == "ok" or finding["advice"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_doctor_compares_shared_memory_with_what_gpus_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    free = 0
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)

    def look() -> doctor.Finding:
        (finding,) = doctor._shared_memory()
        return finding

    free = 64 * 2**20  # a container's default
    found = look()
    assert found.state == ("problem" if gpus else "absent")
    assert "64 MiB free" in found.detail
    assert "--shm-size" in str(found.advice)
    free = doctor.MIN_SHARED_BYTES
    assert (look().state, look().advice) == ("ok", None)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert look().state != "ok"
    assert "read-only" in look().detail
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")  # not Linux
    assert doctor._shared_memory() == []


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


def test_a_mistyped_store_is_not_one_without_damage(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    assert "there is no store" in expect_error(capfd, place, 2, "verify")
    assert not place.store.exists()


def test_a_mistyped_bundle_is_not_looked_for_among_versions(
    capfd: pytest.CaptureFixture[str], place: Place
) -> None:
    place.store.mkdir()
    assert "no bundle" in expect_error(capfd, place, 2, "verify", "exported/nope")
    for version in ("toy/search@v1", "toy/search-state", "toy/evaluate@v2"):
        assert "no version" in expect_error(capfd, place, 2, "verify", version)


def test_without_arguments_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["bench"]):
        assert run(arguments) == 0
        captured = capfd.readouterr()
        assert "Commands:\n" in captured.out
        assert captured.err == ""


def test_a_rival_searches_behind_the_same_command(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    found = place.json(capfd, "search", str(place.preset), "--method", "random")
    assert found["facts"]["method"] == "random"
    assert place.run("search", str(place.preset), "--method", "grid") == 2
    assert "search.method" in capfd.readouterr().err


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
