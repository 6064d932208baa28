"""One runner for all ranks: another one hears the same decisions, makes none, writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import LOOPS, TinyPlace

from d2nas.config import Config
from d2nas.errors import ConfigError
from d2nas.parallel import Ranks
from pipeline.commands.configuration import configure
from pipeline.running import runner as runner_module
from pipeline.running.events import Events
from pipeline.running.other_ranks import ReadingStore, Silence, runner_of
from pipeline.running.runner import Reuse, Runner, RunResult
from pipeline.running.signals import StopFlag
from pipeline.store import Store

Meetings = list[tuple[str, Any]]


def first_rank(meetings: Meetings) -> Ranks:
    """Rank 0, whose meetings are kept with what came of them; it trains alone."""

    class First(Ranks):
        def decide(self, what: str, make: Callable[[], Any], *_: object) -> Any:
            value = json.loads(json.dumps(make()))
            meetings.append((what, value))
            return value

        def largest(self, what: str, *numbers: int) -> list[int]:
            meetings.append((what, [*numbers]))
            return [*numbers]

    return First()


def other_rank(meetings: Meetings) -> Ranks:
    """A rank that hears in the same order what was kept; it trains the same part."""
    left = iter(meetings)

    class Other(Ranks):
        def decide(self, what: str, make: Callable[[], Any], *_: object) -> Any:
            wanted, value = next(left, ("the end", None))
            assert what == wanted
            return value

        def largest(self, what: str, *numbers: int) -> Any:
            return self.decide(what, lambda: None)

    return Other()


def run(made: Runner, place: TinyPlace, loop: str) -> RunResult:
    config: Config = configure(str(place.preset), [])
    store = Store(place.store)
    given = {} if loop == "search" else {"derive": store.open("tiny/derive")}
    return made.run("tiny", config, (loop,), Reuse.EVERYTHING, given=given)


def lies_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.fixture(params=LOOPS)
def trained(
    request: pytest.FixtureRequest, tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Meetings]:
    """What rank 0 decided in a training with a checkpoint after each step."""
    monkeypatch.setattr(runner_module, "CHECKPOINT_SECONDS", 0.0)
    Store(tiny.store).collect_garbage()
    if request.param == "search":
        for stage in ("search", "derive"):
            for path in (tiny.store / "runs" / "tiny" / stage).iterdir():
                path.unlink()
    meetings: Meetings = []
    made = runner_of(first_rank(meetings), tiny.store, Silence(), StopFlag())
    assert run(made, tiny, request.param).executed == [request.param]
    return request.param, meetings


def reader(place: TinyPlace, meetings: Meetings) -> Runner:
    return Runner(
        ReadingStore(place.store),
        Silence(),
        StopFlag(),
        ranks=other_rank(meetings),
        events=runner_of(Ranks(1, 2), place.store, Silence(), StopFlag()).events,
    )


def test_another_rank_hears_each_decision_and_writes_nothing(
    trained: tuple[str, Meetings], tiny: TinyPlace
) -> None:
    loop, meetings = trained
    assert len(meetings) > 30
    before = lies_in(tiny.store)
    heard = [*meetings]
    result = run(reader(tiny, heard), tiny, loop)
    assert result.executed == [loop]
    assert result.versions[loop].id == Store(tiny.store).open(f"tiny/{loop}").id
    assert lies_in(tiny.store) == before

    # The controls: a store and events that write, and a decision more and less.
    made = reader(tiny, meetings)
    made.events = Events
    run(made, tiny, loop)
    assert lies_in(tiny.store) != before
    for others in ([*meetings[:4], ("one more", None), *meetings[4:]], meetings[:4] + meetings[5:]):
        with pytest.raises(AssertionError):
            run(reader(tiny, others), tiny, loop)


def test_rank_0_alone_tells_trackers(
    trained: tuple[str, Meetings], tiny: TinyPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, meetings = trained
    opened: list[tuple[str, ...]] = []

    def sinks_of(names: tuple[str, ...], *_: object) -> list[Any]:
        opened.append(names)
        return []

    monkeypatch.setattr(runner_module, "sinks_of", sinks_of)
    run(reader(tiny, [*meetings]), tiny, loop)
    assert opened == []
    run(runner_of(first_rank([]), tiny.store, Silence(), StopFlag()), tiny, loop)
    assert opened == [("tensorboard",)]  # the control


def test_this_process_is_one_of_the_two_kinds(tmp_path: Path) -> None:
    first, other = (runner_of(Ranks(rank, 2), tmp_path, Silence(), StopFlag()) for rank in (0, 1))
    assert type(first.store) is Store
    assert type(other.store) is ReadingStore
    assert isinstance(other.display, Silence)
    with other.store.stage() as work:
        work.write("weights", b"1")
    assert not list(tmp_path.iterdir())


def test_a_rank_that_reads_other_images_is_refused(tmp_path: Path) -> None:
    place = TinyPlace(tmp_path)
    config = configure(str(place.preset), [])
    first, other = (
        runner_of(Ranks(rank, 2), place.store, Silence(), StopFlag()) for rank in (0, 1)
    )
    digest = first.data_digest(config)
    assert other._own_data(config, digest).digest == digest  # the control
    with pytest.raises(ConfigError, match="rank 1 reads other images than rank 0"):
        other._own_data(config, "1" * 64)
    with pytest.raises(ConfigError, match="the images changed while they were read"):
        first._own_data(config, "1" * 64)
