"""Real processes that run commands, without the seconds in which PyTorch loads.

One process loads everything and forks the others:

    python tests/children.py     (a request per line of JSON, an answer per line)

Each child is a process of its own with the whole command line in it: it can be killed, limited and
sent signals like any other.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

TESTS = Path(__file__).resolve().parents[1]
PROJECT = TESTS.parent


class ForkServer:
    """The process that forks, as its user sees it. A context manager."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, arguments: list[str], **options: Any) -> int:
        """Start a child that runs the command line; returns its process id.

        ``options``: ``checkpoint_seconds``; ``file_limit`` in bytes; ``signals``, pairs (finished
        steps, signal); ``hold_after``, finished steps after which it only waits; ``twice_at``, the
        file operation of the store before which the signal ``twice`` comes twice, counted from 1
        after the first step; ``handlers`` false for the default actions; ``helper``, a kind of
        process that the retraining needs and that SIGTERM ends in its step ``helper_at``, with
        the child's whole group unless ``helper_alone``; ``forked_ranks``, for ``--nproc``: forks
        of the child in place of new interpreters; ``environment``, further variables.
        """
        return int(self._ask({"arguments": arguments, **options})["pid"])

    def call(self, function: str, *arguments: str, **environment: str) -> int:
        """Start a child that calls ``module.function`` of the tests; returns its process id."""
        return int(self._ask({"call": function, "words": arguments, "set": environment})["pid"])

    def wait(self, pid: int) -> tuple[int, str]:
        """Return a child's exit code, negative for a signal, and what it wrote."""
        answer = self._ask({"wait": pid})
        return int(answer["code"]), str(answer["talk"])

    def run(self, arguments: list[str], **options: Any) -> tuple[int, str]:
        """Run a child to its end."""
        return self.wait(self.start(arguments, **options))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


# In the process that forks

LOADED = (
    "pytest",
    "torch.utils.tensorboard",
    "d2nas.methods.d2nas",
    "d2nas.parallel",
    "d2nas.train.machine",
    "d2nas.train.retrain",
    "d2nas.train.search",
    "pipeline.cli",
    "pipeline.commands.execution",
    "pipeline.running.checkpoints",
    "pipeline.running.launch",
    "pipeline.running.other_ranks",
    "pipeline.stages.derive",
    "pipeline.stages.retrain",
    "pipeline.stages.search",
)
"""What the children would each import."""


def serve() -> None:
    """Load everything once, then fork and wait as asked."""
    import torch

    for name in LOADED:
        import_module(name)
    from d2nas import Genotype, Network, count_cost
    from d2nas.compiler import load_compiler
    from d2nas.config import DataConfig
    from d2nas.config.registry import search_methods
    from d2nas.data.images import load_data

    load_compiler()
    torch.set_num_threads(1)
    # Nothing that computes a gradient: the engine's threads would not be in the children.
    count_cost(Network(Genotype.published("DARTS_V2"), num_cells=2, init_channels=4), (3, 8, 8))
    load_data(DataConfig(), seed=0, default_root=Path("unused"))
    search_methods.find("d2nas")
    talks: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid = request["wait"]
            with os.fdopen(talks.pop(pid), "rb") as talk:
                told = talk.read().decode(errors="replace")
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer = {"code": code, "talk": told}
        else:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _be_a_child(request, writer)
            os.close(writer)
            talks[pid] = reader
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # what was loaded needs seconds to be taken down


def _be_a_child(request: dict[str, Any], writer: int) -> None:
    code = 1
    try:
        with contextlib.suppress(OSError):
            os.close(0)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "call" in request:
            _call(request["call"], request["words"], request["set"])
            code = 0
        else:
            _prepare(request)
            from pipeline.cli import run

            code = run(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _call(function: str, arguments: list[str], environment: dict[str, str]) -> None:
    os.environ |= environment
    try:
        function_of(function)(*arguments)
    except BaseException:
        traceback.print_exc()
        raise


def function_of(name: str) -> Callable[..., object]:
    """Return a function of the tests by ``module.name``."""
    module, _, name = name.partition(".")
    (home,) = TESTS.rglob(f"{module}.py")
    if str(home.parent) not in sys.path:
        sys.path.insert(0, str(home.parent))
    found: Callable[..., object] = getattr(import_module(module), name)
    return found


def _prepare(request: dict[str, Any]) -> None:
    from pipeline.running import runner
    from pipeline.running import signals as stop

    os.environ.update(request.get("environment", {}))
    if request.get("forked_ranks", False):
        _fork_ranks()
    if "checkpoint_seconds" in request:
        runner.CHECKPOINT_SECONDS = request["checkpoint_seconds"]
    if not request.get("handlers", True):
        stop.signals_handled = contextlib.nullcontext  # type: ignore[assignment]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signals = [*request.get("signals", [])]
    if "hold_after" in request:
        signals.append((request["hold_after"], None))
    _signal_at_steps(signals, request.get("twice_at"), request.get("twice", signal.SIGTERM))
    if "helper" in request:
        os.setpgid(0, 0)
        _lose_a_helper(request["helper"], request["helper_at"], request.get("helper_alone", False))
    if "file_limit" in request:
        limit = request["file_limit"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


class _Rank:
    """A rank of a training: a fork of its launcher, as ``launch`` sees a process."""

    def __init__(
        self,
        words: list[str],
        *,
        env: dict[str, str],
        stdout: int | None,
        stderr: IO[bytes] | None,
        preexec_fn: Callable[[], None],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                preexec_fn()
                if stdout == subprocess.DEVNULL:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                if stderr is not None:
                    os.dup2(stderr.fileno(), 2)
                os.environ.update(env)
                from pipeline.cli import run

                code = run(words)
                sys.stdout.flush()
                sys.stderr.flush()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int | None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a rank", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _fork_ranks() -> None:
    from pipeline.running import launch

    launch.own_command = lambda *words: [*words]
    launch.subprocess.Popen = _Rank  # type: ignore[misc, assignment]


def _signal_at_steps(
    signals: list[tuple[int, int | None]], twice_at: int | None, twice: int
) -> None:
    from pipeline.running import runner
    from pipeline.store import FileSystem

    advance, operation = runner._StageHooks.advance, FileSystem._operation
    steps = operations = 0

    def advanced(hooks: Any, done: int, row: Any) -> None:
        nonlocal steps
        advance(hooks, done, row)
        steps += 1
        for step, number in signals:
            if step == steps and number is not None:
                os.kill(os.getpid(), number)
            elif step == steps:
                signal.pause()

    def operated(system: Any, kind: str, path: Path, action: Any) -> None:
        nonlocal operations
        if steps:
            operations += 1
            if operations == twice_at:
                os.kill(os.getpid(), twice)
                os.kill(os.getpid(), twice)
        operation(system, kind, path, action)

    runner._StageHooks.advance = advanced  # type: ignore[method-assign]
    FileSystem._operation = operated  # type: ignore[method-assign]


def _lose_a_helper(kind: str, at: int, alone: bool) -> None:
    from d2nas.train import retrain

    train_step = retrain.train_step

    def end(pid: int) -> None:
        if alone:
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(0, signal.SIGTERM)

    def trained(loop: Any, step: int) -> None:
        if step == at:
            HELPERS[kind](end)
        train_step(loop, step)

    retrain.train_step = trained


def _command(end: Callable[[int], None]) -> None:
    """A command, as ``subprocess.run(..., check=True)`` meets its end."""
    with subprocess.Popen(["sleep", "600"]) as process:
        end(process.pid)
    raise subprocess.CalledProcessError(process.returncode, "sleep")


def _compiler(end: Callable[[int], None]) -> None:
    """A compiler's command, as PyTorch passes its end on."""
    from torch._inductor.exc import CppCompileError

    with subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, text=True) as process:
        end(process.pid)
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGTERM
    raise CppCompileError(["sleep"], output)


def _pipe(end: Callable[[int], None]) -> None:
    """A process that is asked through a pipe."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        end(process.pid)
        process.wait()
        process.stdin.write(b"?")
        process.stdin.flush()


def _answer(end: Callable[[int], None]) -> None:
    """A process that answers with an object, and ends before it has."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    with subprocess.Popen(["sleep", "600"], pass_fds=[writer.fileno()]) as process:
        writer.close()
        end(process.pid)
        reader.recv()


def _pool(end: Callable[[int], None]) -> None:
    """A pool of processes, as PyTorch compiles with."""
    context = multiprocessing.get_context("fork")
    default = (signal.SIGTERM, signal.SIG_DFL)
    with ProcessPoolExecutor(1, context, signal.signal, default) as pool:
        pid = pool.submit(os.getpid).result()
        answer = pool.submit(time.sleep, 600)
        end(pid)
        answer.result()


HELPERS = {
    "command": _command,
    "compiler": _compiler,
    "pipe": _pipe,
    "answer": _answer,
    "pool": _pool,
}


if __name__ == "__main__":
    serve()
