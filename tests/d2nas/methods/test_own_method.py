"""A method of one's own: the README's example from outside the package, found in three ways."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from searches import CPU, config_of, final_state, finish, made_images, search_by
from toy import Place

import d2nas
import d2nas.methods
from d2nas import SPACES, Genotype, Method, SearchConfig, register_method
from d2nas.config import DataConfig, build_config, sources_of
from d2nas.config.effects import without_effect
from d2nas.config.registry import search_methods
from d2nas.errors import ConfigError
from d2nas.methods.d2nas import D2nas
from d2nas.nn.sampling import ArchLogits
from d2nas.train.search import Search, build_method, weight_step
from pipeline import stages

README = Path(d2nas.__file__).parent / "README.md"
EXAMPLE, STOPPING_EXAMPLE = (
    block
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    if "register_method" in block
)
ONLY_LINES = [line for line in EXAMPLE.splitlines() if line.strip()]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test registers or imports is there for the next one."""
    search_methods.names()
    monkeypatch.setattr(search_methods, "_known", dict(search_methods._known))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.rpartition(".")[2] in ("toy_method", "toy_package", "broken"):
            del sys.modules[name]


def write(folder: Path, text: str = EXAMPLE, name: str = "toy_method.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def run_example(folder: Path) -> type[Method]:
    kind: type[Method] = runpy.run_path(str(write(folder)), run_name="toy_method")["Toy"]
    return kind


def add_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Files in ``folder`` are modules of ``d2nas.methods``, as if they had been dropped there."""
    monkeypatch.setattr(d2nas.methods, "__path__", [*d2nas.methods.__path__, str(folder)])


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, value: str, text: str = EXAMPLE) -> None:
    """A package with an entry point named toy."""
    write(folder, text, "toy_package.py")
    about = folder / "toy_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[d2nas.methods]\ntoy = {value}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_the_example_is_short() -> None:
    assert len(ONLY_LINES) <= 30


def test_it_searches_and_derives_by_the_commands(tmp_path: Path, place: Place) -> None:
    run_example(tmp_path)
    assert place.run("search", str(place.preset), "--method", "toy") == 0
    assert place.run("derive", "toy") == 0
    (genotype,) = place.store.glob("**/genotype.json")
    Genotype.from_json(genotype.read_text())


def test_control_what_nobody_registered_is_refused(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert place.run("search", str(place.preset), "--method", "toy") == 2
    assert "unknown search method 'toy'" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="unknown search method 'gdass'") as refused:
        build_config({}, ["search.method=gdass"])
    assert refused.value.hint == "did you mean gdas?"


def test_its_facts_count(tmp_path: Path) -> None:
    kind = run_example(tmp_path)
    kind.unread, kind.precisions = ("branch_head",), ("fp32",)
    config = build_config({}, ["search.method=toy", "search.epochs=10"])
    assert (config.search.draws, config.search.arch_lr) == (4, 0.01)
    assert config.search.warmup_epochs == 0
    assert build_config({}, ["search.epochs=10"]).search.warmup_epochs == 3  # control: d2nas's
    assert build_config({}, ["search.method=toy", "search.draws=2"]).search.draws == 2
    told = without_effect(config, ["search.branch_head", "search.draws"])
    assert told == {"search.method=toy": ["search.branch_head"]}
    with pytest.raises(ConfigError, match="precision must be fp32 for toy"):
        build_config({}, ["search.method=toy", "search.precision=bf16"])
    assert build_config({}, ["search.method=toy", "derive.candidates=3"])
    kind.learns_distribution = False
    with pytest.raises(ConfigError, match="toy learns no distribution"):
        build_config({}, ["search.method=toy", "derive.candidates=3"])


def search_key(method: str, *settings: str) -> str:
    config = build_config({}, [f"search.method={method}", *settings])
    return stages.BY_NAME["search"].key(config, {}, "data")


def test_a_grown_revision_is_another_search(tmp_path: Path) -> None:
    kind = run_example(tmp_path)
    first = search_key("toy")
    kind.architecture_gradients = D2nas.architecture_gradients
    assert search_key("toy") == first  # control: the code itself is not looked at
    kind.revision = 2
    second = search_key("toy")
    kind.revision = 3
    assert len({first, second, search_key("toy")}) == 3


def test_a_first_revision_leaves_keys_as_they_were() -> None:
    """Another key would make stored searches run again."""
    gdas = {"epochs": 50, "batch_size": 64, "weight_lr": 0.05, "weight_decay": 3e-4}
    settings = [f"search.{field}={value}" for field, value in gdas.items()]
    expected = "9113d2739b6ddede4793d7da5a712624eae19203bed09eb05e5411324504bac1"
    assert search_key("gdas", *settings) == expected
    assert search_key("d2nas") == "ff11d914d2786d07a75868aeef49e321fa59761ded330f5c7d47490901a299d1"


def test_a_revised_method_searches_again(
    tmp_path: Path, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    def searched() -> int:
        assert place.run("search", str(place.preset), "--method", "toy") == 0
        return len(list(place.store.glob("runs/toy/search/v*.json")))

    kind = run_example(tmp_path)
    assert [searched(), searched()] == [1, 1]
    kind.revision = 2
    assert searched() == 2


def test_the_source_of_its_defaults_is_told(tmp_path: Path) -> None:
    run_example(tmp_path)
    sources = sources_of({"search.arch_lr": "--set"}, "toy")
    assert sources["search.draws"] == "search.method=toy"
    assert sources["search.arch_lr"] == "--set"
    assert sources_of({})["search.draws"] == "ROME 4"  # control: d2nas's


def test_it_learns_and_resumes_bit_equal(tmp_path: Path) -> None:
    run_example(tmp_path)
    whole, state = search_by("toy"), None
    for report in whole.run():
        state = whole.capture(report.step + 1) if report.step == 1 else state
    assert all(torch.count_nonzero(logits) for logits in whole.logits.parameters())
    again = search_by("toy")
    for _ in again.run(state):
        pass
    one, other = final_state(whole), final_state(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.method.derive() == again.method.derive()


def test_the_example_of_a_stop_stops_and_resumes_bit_equal(tmp_path: Path) -> None:
    runpy.run_path(str(write(tmp_path, STOPPING_EXAMPLE)), run_name="toy_method")

    def searching() -> Search:
        return search_by("patient", "search.epochs=4", "search.warmup_epochs=0", space="S2")

    whole, state = searching(), None
    assert whole.method.memory is not None
    for report in whole.run():
        if report.step == 2:
            state = whole.capture(3)
            whole.method.memory.lowest.zero_()  # so that the second epoch's loss is a rise
    assert whole.num_steps == 4
    assert whole.metrics[-1]["next_epoch"] == 4
    assert whole.num_passes == 4 * 4 + 2
    assert state is not None
    state.tensors["method.lowest"].zero_()
    again = searching()
    for _ in again.run(state):
        pass
    one, other = final_state(whole), final_state(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.metrics == again.metrics
    assert finish(searching()).num_steps > 4  # control


def test_a_file_dropped_among_the_methods_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    add_folder(monkeypatch, tmp_path)
    assert "toy" in search_methods.names()
    assert search_methods.find("toy").__module__ == "d2nas.methods.toy_method"
    finish(search_by("toy", "search.epochs=1"))


def test_a_broken_file_is_named_and_costs_no_other_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "import nothing_like_this\n" + EXAMPLE, "broken.py")
    add_folder(monkeypatch, tmp_path)
    assert search_methods.find("gdas").name == "gdas"
    with pytest.raises(ConfigError, match=r"d2nas.methods.broken cannot be imported: Module.*this"):
        search_methods.find("toy")


@pytest.mark.parametrize("value", ["toy_package:Toy", "toy_package"])
def test_an_entry_point_of_another_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install(monkeypatch, tmp_path, value)
    assert "toy" in search_methods.names()
    assert "toy_package" not in sys.modules  # listed, not loaded
    assert search_methods.find("toy").__module__ == "toy_package"
    assert build_config({}, ["search.method=toy"]).search.draws == 4


@pytest.mark.parametrize("value", ["toy_package:Nothing", "toy_package:sample", "no_package:Toy"])
def test_a_broken_entry_point_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Place,
    capfd: pytest.CaptureFixture[str],
    value: str,
) -> None:
    install(monkeypatch, tmp_path, value, EXAMPLE.replace('@register_method("toy")\n', ""))
    assert place.run("search", str(place.preset), "--method", "toy") == 2
    told = capfd.readouterr().err
    assert f"search method toy ({value}, an entry point d2nas.methods) cannot be loaded" in told
    assert "Traceback" not in told
    assert search_methods.find("gdas").name == "gdas"


@pytest.mark.parametrize("name", ["d2nas", "gdas", "Toy", "a b", "", "../x"])
def test_a_name_that_is_taken_or_invalid_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is already registered|invalid name"):
        register_method(name)(type("Toy", (Method,), {"__module__": "somewhere"}))


def test_an_instance_takes_the_place_of_the_configured_method() -> None:
    def search_with(config: SearchConfig, **given: Any) -> Search:
        data, place = (
            made_images(),
            {"seed": 0, "device": CPU, "augmentation": DataConfig(crop_padding=1)},
        )
        return finish(Search(config, SPACES["S0"], data, **place, **given))

    by_name = config_of("gdas", "search.warmup_epochs=0").search
    plain = by_name.model_copy(update={"method": "d2nas"})
    instance = build_method(by_name, made_images(), SPACES["S0"], seed=0)
    given = search_with(plain, method=instance)
    assert given.method is instance
    one, other = final_state(given), final_state(search_with(by_name))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def derives(value: Any) -> type[Method]:
    """A method that derives ``value`` from any logits."""
    facts = {"__module__": "somewhere", "genotype_of": classmethod(lambda cls, logits: value)}
    return type("Toy", (D2nas,), facts)


def test_what_is_no_cell_of_the_searched_space_is_not_derived() -> None:
    logits = ArchLogits(SPACES["S4"])
    foreign = register_method("foreign")(derives(Genotype.published("DARTS_V2")))
    with pytest.raises(ConfigError, match=r"foreign derives .* which the space S4 has not"):
        foreign.derive_from(logits)
    nothing = register_method("nothing")(derives(None))
    with pytest.raises(ConfigError, match="nothing derives None, no Genotype"):
        nothing.derive_from(logits)
    # Control: in its own space the same cell is one.
    assert foreign.derive_from(ArchLogits(SPACES["S0"])) == Genotype.published("DARTS_V2")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("recipe", 5),
        ("recipe", {"nosuch": 3}),
        ("unread", ("nosuch",)),
        ("unread", "draws"),
        ("precisions", None),
        ("precisions", ()),
        ("passes", (1, -1)),
    ],
)
def test_invalid_facts_are_refused(fact: str, value: Any) -> None:
    kind = type("Toy", (D2nas,), {"__module__": "somewhere", fact: value})
    with pytest.raises(ConfigError, match=f"search method toy: invalid {fact}"):
        register_method("toy")(kind)
    assert "toy" not in search_methods.names()


def test_passes_may_depend_on_the_configuration() -> None:
    passes = property(lambda _self: (1, 1), lambda _self, _value: None)
    kind = type("Toy", (D2nas,), {"__module__": "somewhere", "passes": passes})
    assert register_method("toy")(kind) is kind


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no subclass of Method"):
        register_method("toy")(len)  # type: ignore[type-var]


@pytest.mark.parametrize(
    "end",
    ["raise SystemExit(0)", "raise ValueError", "register_method('toy')(type('B', (Toy,), {}))"],
)
def test_a_module_that_fails_registers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    install(monkeypatch, tmp_path, "toy_package", f"{EXAMPLE}\n{end}\n")
    for _again in range(2):
        with pytest.raises(ConfigError, match=r"search method toy .* cannot be loaded"):
            search_methods.find("toy")
    assert search_methods.find("gdas").name == "gdas"


def test_what_a_module_prints_is_no_output_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, tmp_path, "toy_package", f"{EXAMPLE}\nprint('hello')\n")
    search_methods.find("toy")
    assert capfd.readouterr() == ("", "hello\n")


def test_a_method_that_fails_is_named_and_no_bug_of_d2nas(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Place,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = f"{EXAMPLE}\n    @classmethod\n    def settings(cls, given):\n        return 1 / 0\n"
    install(monkeypatch, tmp_path, "toy_package", broken)
    assert place.run("search", str(place.preset), "--method", "toy") == 2
    told = capfd.readouterr().err
    assert "the search method toy (toy_package) fails: ZeroDivisionError: division by zero" in told
    # Control: the same error of our own code is a bug.
    monkeypatch.setattr(search_methods, "owner_of", lambda _module: None)
    assert place.run("search", str(place.preset), "--method", "toy") == 1


def test_a_method_that_gives_no_weight_a_gradient_is_refused() -> None:
    search = search_by("d2nas", space="S0")
    search.method.weight_gradients = lambda batch, context: search.method.run(  # type: ignore[method-assign]
        batch, [], []
    )
    with pytest.raises(ConfigError, match="d2nas gives no weight a gradient"):
        weight_step(search, 0)
