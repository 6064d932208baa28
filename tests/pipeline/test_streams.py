"""Hostile standard streams: full, left by their reader, hung up, closed, of another encoding.

What a command computes and its exit code are the same as ever; only what was asked for on stdout
and cannot be given there is an error.
"""

import contextlib
import errno
import io
import json
import logging
import os
import pty
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from tiny import TinyPlace

from d2nas.errors import StorageError
from pipeline import cli, console, streams
from pipeline.cli import run
from pipeline.commands import show as commands
from pipeline.streams import guarded_streams, lost_output, optional_output

KINDS = ("full", "left", "hung up", "closed")
GIVING = [
    ["--version"],
    ["--help"],
    ["bench"],
    ["ls", "--help"],
    ["show", "--config", "quickstart"],
]


@contextlib.contextmanager
def hostile(kind: str) -> Iterator[TextIO | None]:
    """A text file that every write to fails, as the standard streams are opened."""
    if kind == "closed":
        yield None
        return
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    elif kind == "left":
        reader, number = os.pipe()
        os.close(reader)
    else:
        terminal, number = pty.openpty()
        os.close(terminal)
    stream = open(number, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):  # a control leaves bytes in it
            stream.close()


@contextlib.contextmanager
def with_streams(stdout: TextIO | None, stderr: TextIO | None) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = stdout, stderr  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def text_file() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_whose_talk_is_lost_is_the_same(
    kind: str, quick_path: Path, derived_folder: Path
) -> None:
    place = TinyPlace(quick_path)
    with hostile(kind) as stream, with_streams(stream, stream):
        assert place.run(*place.words("search")) == 0
    version, expected = place.latest("search"), TinyPlace(derived_folder).latest("search")
    assert version is not None
    assert expected is not None
    assert version.id == expected.id


@pytest.mark.parametrize("kind", KINDS)
def test_control_unguarded_the_same_training_fails(
    kind: str, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_can_be_guarded", lambda stream: False)
    place = TinyPlace(quick_path)
    code = None
    with (
        hostile(kind) as stream,
        with_streams(stream, stream),
        contextlib.suppress(Exception, SystemExit),
    ):
        code = place.run(*place.words("search"))
    # rich is silent of itself where there is no stream, and the closing lines are not
    assert code != 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["search", "derive"])
def test_a_closing_summary_is_talk_and_json_is_an_answer(
    kind: str, stage: str, tiny: TinyPlace
) -> None:
    errors = text_file()
    with hostile(kind) as stream, with_streams(stream, errors):
        assert tiny.run(*tiny.words(stage)) == 0
        assert "cannot write" not in content(errors)
        code = tiny.run(*tiny.words(stage), "--json")
    told = content(errors)
    assert code == (0 if kind == "left" else 7)
    assert told.count("error: cannot write to stdout: ") == (0 if kind == "left" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_asked_for_and_cannot_be_given_is_7(kind: str, derived_folder: Path) -> None:
    store = ["--store", str(derived_folder / "store")]
    stored = [["ls", *store], ["ls", *store, "--json"], ["verify", *store]]
    stored += [["show", "tiny/search", *store], ["gc", "--dry-run", "--json", *store]]
    for arguments in [*GIVING, *stored]:
        errors = text_file()
        with hostile(kind) as stream, with_streams(stream, errors):
            code = run(arguments)
        told = content(errors)
        assert "bug" not in told
        assert code == (0 if kind == "left" else 7), arguments
        assert told.count("error: ") == (0 if kind == "left" else 1), told


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_of_the_commands_own_is_kept(kind: str, tiny: TinyPlace) -> None:
    version = tiny.latest("search")
    assert version is not None
    for path in version.path.iterdir():
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + b" ")
    for talk_is_lost in (False, True):
        with hostile(kind) as stream, with_streams(stream, stream if talk_is_lost else text_file()):
            assert tiny.run("verify") == 4
            assert tiny.run("show", "nothing") == 2
    with hostile("full") as stream, with_streams(stream, stream), optional_output():
        assert lost_output() is None


def test_what_other_libraries_say_is_talk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*_: object, **__: object) -> None:
        warnings.warn("of a library", UserWarning, stacklevel=1)
        logging.getLogger("of a library").error("no handler")
        logging.StreamHandler().handle(logging.makeLogRecord({"msg": "a handler"}))
        sys.stderr.write("no newline")
        sys.stderr.flush()
        sys.stderr.buffer.write(b"bytes")
        sys.stderr.buffer.flush()

    monkeypatch.setattr(commands, "show_config", say)
    for kind in KINDS:
        with hostile(kind) as stream, with_streams(text_file(), stream):
            assert run(["show", "--config", "quickstart"]) == 0
    if stream := text_file():
        with with_streams(text_file(), stream):
            assert run(["show", "--config", "quickstart"]) == 0
    assert "no newlinebytes" in content(stream)


def test_after_a_hole_nothing_more_of_an_answer_is_written_and_talk_goes_on() -> None:
    class Sometimes(io.RawIOBase):
        def __init__(self) -> None:
            self.refuses, self.taken = True, b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.refuses:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.taken += bytes(data)[:2]
            return min(2, len(data))

    out, err = Sometimes(), Sometimes()
    given = [io.TextIOWrapper(io.BufferedWriter(one)) for one in (out, err)]  # type: ignore[arg-type]
    with with_streams(*given), guarded_streams():
        for word in ("lost", "late"):
            sys.stdout.write(word)
            sys.stdout.flush()
            sys.stderr.write(word)
            sys.stderr.flush()
            out.refuses = err.refuses = False
        lost = lost_output()
    assert lost is not None
    assert lost.errno == errno.ENOSPC
    assert (out.taken, err.taken) == (b"", b"late")


def test_a_stream_that_does_not_block_gets_everything() -> None:
    reader, number = os.pipe()
    os.set_blocking(number, False)
    words = "x" * 300_000
    drain = subprocess.Popen(["wc", "-c"], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    with open(number, "w") as stream, with_streams(stream, text_file()), guarded_streams():
        sys.stdout.write(words)
        assert lost_output() is None
    counted, _ = drain.communicate(timeout=60)
    assert int(counted) == len(words)


# Processes


def process(arguments: list[str], redirected: str, **environment: str) -> tuple[int, str]:
    """Run the command in a shell with redirections; return its code and what is on stderr."""
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "d2nas", *arguments])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} {redirected}"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirected", "code"), [(">/dev/full", 7), (">&-", 7), ("| true", 0), ("2>/dev/full", 0)]
)
def test_nothing_is_said_at_a_processs_exit(
    redirected: str, code: int, derived_folder: Path
) -> None:
    found, told = process(["ls", "--store", str(derived_folder / "store")], redirected)
    assert found == code, told
    assert "Exception" not in told
    assert told.count("\n") == (2 if code else 0)


def test_a_training_with_all_descriptors_closed_keeps_its_files_clean(tmp_path: Path) -> None:
    place = TinyPlace(tmp_path)
    code, _ = process(place.command("search"), "<&- >&- 2>&-")
    assert code == 0
    assert place.run("verify") == 0


@pytest.mark.parametrize("held", [True, False])
def test_a_closed_descriptors_number_goes_to_no_other_file(tmp_path: Path, held: bool) -> None:
    """The control is the one where they are not held: talk would land in that file."""
    script = (
        "import os, sys\n"
        "from pipeline.streams import hold_descriptors\n"
        f"{'hold_descriptors()' if held else ''}\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    raise SystemExit(file.fileno() > 2)\n"
    )
    command = f"'{sys.executable}' -c \"$0\" '{tmp_path / 'data'}' <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", command, script])
    assert done.returncode == held


# Encodings

NAMES = {"latin": "Mülleimer", "greek": "αβγ", "no text": os.fsdecode(b"caf\xe9")}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_the_same_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: object, **__: object) -> None:
        console.Console().data(NAMES)

    monkeypatch.setattr(commands, "show_config", show)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with with_streams(out, text_file()):
        assert run(["show", "--config", "quickstart"]) == 0
    written = out.buffer.getvalue()  # type: ignore[attr-defined]
    assert json.loads(written.decode(encoding)) == NAMES


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_text_that_an_encoding_lacks_is_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(*_: object, **__: object) -> None:
        shown = console.Console()
        shown.table("names", ("kind", "name"), list(NAMES.items()))
        shown.warn(NAMES["greek"])
        raise StorageError(f"{NAMES['no text']}: gone")

    monkeypatch.setattr(commands, "show_config", show)
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with with_streams(out, errors):
        assert run(["show", "--config", "quickstart"]) == 7
    rows = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    told = errors.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    latin = "M\\xfclleimer" if encoding == "ascii" else "Mülleimer"
    greek = "αβγ" if encoding == "utf-8" else "\\u03b1\\u03b2\\u03b3"
    assert f"latin\t{latin}\n" in rows
    assert f"greek\t{greek}\n" in rows
    assert "no text\tcaf\\udce9\n" in rows
    assert f"warning: {greek}" in told
    assert "error: caf\\udce9: gone" in told


def test_control_unguarded_such_text_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_: object, **__: object) -> None:
        console.Console().table("names", ("kind", "name"), list(NAMES.items()))

    monkeypatch.setattr(commands, "show_config", show)
    monkeypatch.setattr(cli, "guarded_streams", contextlib.nullcontext)
    with with_streams(io.TextIOWrapper(io.BytesIO(), encoding="ascii"), text_file()):
        assert run(["show", "--config", "quickstart"]) != 0


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
PROBE = (
    "import os, sys; os.environ.pop('PYTHONIOENCODING', None)\n"
    "from d2nas import __main__ as m\n"
    "again = m._restart_in_utf8_mode if sys.argv[1] == 'again' else (lambda: None); again()\n"
    "from d2nas.data.folders import find_images\n"
    "from pathlib import Path\n"
    "print(ascii((sys.stdout.encoding, find_images(Path(sys.argv[2])).class_names)))\n"
)


@pytest.mark.parametrize("way", ["again", "control"])
def test_class_names_are_the_same_in_a_c_locale(way: str, tmp_path: Path) -> None:
    for name in ("Müll", "αβγ"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(b"not looked into")
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = subprocess.run(
        [sys.executable, str(script), way, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **C_LOCALE, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if way == "control":
        assert "set PYTHONUTF8=1" in repr(done.stderr) or "is not printable" in done.stderr
        assert done.returncode != 0
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout == ascii(("ascii", ("Müll", "αβγ"))) + "\n"
