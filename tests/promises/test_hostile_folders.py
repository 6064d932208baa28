"""Hostile folders: removed, forbidden, read-only, looped, of other kinds, with impossible names."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import commit, contents
from toy import Place

from d2nas.errors import ConfigError, StorageError
from d2nas.files.text_files import read_text
from pipeline.cli import run
from pipeline.foreign_errors import explained
from pipeline.preflight.doctor import examine
from pipeline.running.events import Events
from pipeline.store import Store, references

Told = Callable[[int, list[str]], str]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Told:
    """Run a command, expect this exit code, and return what it says."""

    def run_it(code: int, arguments: list[str]) -> str:
        capfd.readouterr()
        found = run(arguments)
        talk = capfd.readouterr().err
        assert found == code, talk
        assert "bug" not in talk
        assert "Traceback" not in talk
        return talk

    return run_it


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one version."""
    store = Store(tmp_path / "store")
    commit(store, contents(1))
    return store


@pytest.fixture
def _removed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    yield
    os.chdir(tmp_path)


COMMANDS = ("ls", "show a/search", "gc", "verify", "derive a", "study table-2 --plan")


@pytest.mark.usefixtures("_removed_folder")
@pytest.mark.parametrize(
    "command", ["ls", "show a/search", "gc", "derive a", "predict b c.png", "evaluate b c"]
)
def test_a_working_folder_that_was_removed_is_told(command: str, told: Told) -> None:
    talk = told(7, command.split())
    assert "the working folder has been removed" in talk
    assert "hint: cd to a folder that is there" in talk


@pytest.mark.usefixtures("_removed_folder")
def test_what_needs_no_working_folder_does_not_miss_it(store: Store, told: Told) -> None:
    for command in ("ls", "show quickstart/search", "gc", "verify", "doctor"):
        told(0, [*command.split(), "--store", str(store.root)])
    told(0, ["doctor"])
    finding = examine(Path("relative"), "relative")[-1]
    assert (finding.subject, finding.state) == ("free space", "problem")


IMPOSSIBLE = {
    "not UTF-8": (os.fsdecode(b"\xff\xfe"), {0, 2}),
    "zero character": ("a\0b", {2}),
    "long": ("x" * 300, {2, 7}),
    "long in all": ("/".join(["y" * 200] * 30), {2, 7}),
    "line break": ("a\nb", {0, 2}),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_name_that_cannot_be_is_told(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    part, codes = IMPOSSIBLE[name]
    path = f"{tmp_path}/{part}"
    for words in (
        *([*command.split(), "--store", path] for command in COMMANDS),
        ["verify", path],
        ["predict", path, "x.png"],
        ["predict", str(tmp_path), path],
        ["evaluate", path, "x"],
        ["evaluate", str(tmp_path), path],
        ["serve", path],
        ["show", "--config", f"{path}.toml"],
        ["doctor", "--store", path],
        ["doctor", "--data-root", path],
        ["run", "folder", "--plan", "--data-root", path],
        ["retrain", "quickstart", "--genotype", f"{path}.json", "--store", str(tmp_path / "s")],
    ):
        code = run(words)
        talk = capfd.readouterr().err
        assert code in {*codes, 0 if "doctor" in words else 2}, (words[0], talk)
        assert "bug" not in talk
        assert "not installed" not in talk


def test_events_of_a_folder_that_is_not_utf_8_lose_no_row(tmp_path: Path) -> None:
    """TensorBoard's writer takes no such name; the search goes on."""
    warnings: list[str] = []
    folder = tmp_path / os.fsdecode(b"\xff")
    with Events(folder, warnings.append) as events:
        events.begin([])
        for step in (1, 2):
            events.add(step, {"step": step, "loss": 1.0})
    assert len(warnings) <= 1  # none where TensorBoard is not installed
    assert all("TensorBoard's files are not written" in line for line in warnings)
    assert len((folder / "rows.jsonl").read_bytes().splitlines()) == 2


def test_control_the_writer_of_events_takes_no_such_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with pytest.raises(UnicodeEncodeError):
        SummaryWriter(str(tmp_path / os.fsdecode(b"\xff")))


KINDS: dict[str, Callable[[Path], None]] = {
    "a file": Path.touch,
    "a loop": lambda path: path.symlink_to(path),
    "a broken link": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("part", ["", "runs", "versions", "names", "locks", "staging"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_thing_in_the_place_of_a_folder_is_told(
    kind: str, part: str, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    path = store.root / part
    shutil.rmtree(path, ignore_errors=True)
    KINDS[kind](path)
    for command in COMMANDS:
        code = run([*command.split(), "--store", str(store.root)])
        talk = capfd.readouterr().err
        assert code in {0, 2, 4, 7}, talk
        assert "bug" not in talk


# Files that the system refuses


def refuse(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Have the system refuse to open files whose path ends like this."""
    real = os.open

    def refusing(path: object, *arguments: int, **named: int) -> int:
        if str(path).endswith(suffix):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("suffix", ["weights.bin", "v1.json"])
def test_what_cannot_be_read_is_not_called_damaged(
    suffix: str, store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, suffix)
    words = ["--store", str(store.root)]
    talk = told(7, ["verify", *words])
    assert "error: 1 unreadable among 1 versions" in talk
    assert "who may read the store" in talk
    monkeypatch.setattr(references.Damage, "of", lambda *words: references.Damage(*words[:2], ""))
    told(4, ["verify", *words])  # control


def test_a_name_that_cannot_be_read_may_be_anything(
    store: Store, told: Told, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, "v1.json")
    words = ["--store", str(store.root)]
    assert "a name is not known" in told(7, ["gc", *words])
    told(7, ["show", next(store.root.glob("versions/*")).name, *words])
    assert run(["ls", "--json", *words]) == 0
    assert [row["kind"] for row in json.loads(capfd.readouterr().out)] == ["unreadable"]


def test_damage_beside_what_cannot_be_read_is_damage(
    store: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, contents(2))
    (next(store.root.glob("versions/*")) / "weights.bin").write_bytes(b"")
    refuse(monkeypatch, "v2.json")
    talk = told(4, ["verify", "--store", str(store.root)])
    assert "error: 1 damaged among 2 versions" in talk
    assert "error: 1 unreadable among 2 versions" in talk


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_file_that_a_user_names_and_the_system_refuses_is_a_storage_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: object, *_: object) -> int:
        raise OSError(number, os.strerror(number), path)

    with pytest.raises(ConfigError, match="No such file"):
        read_text(tmp_path / "a.toml")
    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(StorageError, match=r"cannot read .*a\.toml") as caught:
        read_text(tmp_path / "a.toml")
    wanted = "ulimit" if number == errno.EMFILE else "who may read"
    assert wanted in str(caught.value.hint)


MODES = (0o000, 0o111, 0o444, 0o555)
NOBODY = 65534


@pytest.mark.parametrize("mode", MODES, ids=oct)
@pytest.mark.parametrize("what", ["files", "folders", "both"])
def test_modes_that_forbid_are_told(mode: int, what: str, store: Store, tmp_path: Path) -> None:
    """By another user than root, to whom nothing is forbidden."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user here")
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest makes them for root alone
        folder.chmod(folder.stat().st_mode | 0o111)
    for path in [*store.root.rglob("*"), store.root][::-1]:
        concerned = what == "both" or path.is_dir() == (what == "folders")
        path.chmod(mode if concerned else 0o777)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            codes = {run([*c.split(), "--store", str(store.root)]) for c in COMMANDS}
            code = 0 if codes <= {0, 2, 7} else max(codes)
        finally:
            os._exit(code)
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert found == 0


@pytest.mark.parametrize(
    ("error", "code", "words", "hint"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "out of memory", "free memory"),
        (MemoryError(), 6, "out of memory", "free memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            6,
            "out of memory",
            "lower batch_size",
        ),
        (OSError(errno.EMFILE, "Too many open files"), 7, "Too many", "ulimit -n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 7, "x: File", "shorter"),
        (FileNotFoundError(errno.ENOENT, "no", "x"), 7, "x: no", ""),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            7,
            "no temporary folder that can be written to",
            "TMPDIR",
        ),
        (
            ModuleNotFoundError("No module named 'logging.config'", name="logging.config"),
            2,
            "a module of Python itself",
            "who may read Python's folders",
        ),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "package torch", "pip"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_system_has_a_hint_that_helps(
    error: Exception, code: int, words: str, hint: str
) -> None:
    found = explained(error)
    assert found is not None
    assert found.exit_code == code
    assert words in str(found)
    assert hint in (found.hint or "")


def test_control_another_error_is_a_bug() -> None:
    assert explained(ValueError("embedded null byte")) is None
    assert explained(RuntimeError("shapes do not fit")) is None
    assert explained(ModuleNotFoundError("No module named 'pipeline.x'", name="pipeline.x")) is None


NO_TEMPORARY_FOLDER = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
from pipeline.serving.lifecycle import Serving
Serving.run = lambda _: None  # ready, and stopped at once
from pipeline.cli import run
sys.exit(max(run(words.split()) for words in sys.argv[1:]))
"""


def without_temporary_folder(*commands: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", NO_TEMPORARY_FOLDER, *commands]
    return subprocess.run(words, capture_output=True, text=True)


def test_no_temporary_folder_is_needed_to_answer(finished: Place) -> None:
    bundle = finished.exported / finished.name
    picture = bundle / "golden.png"
    done = without_temporary_folder(
        f"verify {bundle}", f"predict {bundle} {picture}", f"serve {bundle} --port 0"
    )
    assert done.returncode == 0, done.stderr


def test_what_needs_a_temporary_folder_says_so(finished: Place) -> None:
    done = without_temporary_folder(f"bench profile {finished.name} --store {finished.store}")
    assert done.returncode == 7, done.stderr
    assert "hint: set TMPDIR" in done.stderr
