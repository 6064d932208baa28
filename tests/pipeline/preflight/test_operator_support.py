"""Each operation of a space alone on a device: what does not land there is named."""

import json
from dataclasses import replace
from typing import Any

import fake_runtime
import onnx
import pytest
import torch
from fake_runtime import CPU, CUDA, Fail, FakeRuntime, FakeSession, Options, Situation
from toy import Place

from d2nas import SPACES, Genotype
from d2nas.config import build_config
from d2nas.errors import ValidationFailedError
from d2nas.nn.operations import FactorizedReduce
from pipeline.cli import run
from pipeline.onnx_io import session
from pipeline.preflight import operator_support as placement
from pipeline.preflight.operator_support import (
    Placement,
    operations_of,
    place_operations,
    require_all_land,
)

POOLS = {
    "name": "pools",
    "normal": ["max_pool_3x3", "avg_pool_3x3", "noise"],
}


@pytest.fixture
def pools() -> Any:
    return type(SPACES["S0"]).from_dict(POOLS)


def without_kernel(
    situation: Situation, missing: str, monkeypatch: pytest.MonkeyPatch
) -> FakeRuntime:
    """CUDA works, but one operator has no kernel there, which a strict session refuses."""
    fake = fake_runtime.install(situation, monkeypatch)

    def session(
        model: bytes, options: Options, *, providers: list[Any], enable_fallback: int
    ) -> FakeSession:
        fake.requests.append((providers, options, enable_fallback))
        name, provider_options = providers[0] if isinstance(providers[0], tuple) else (CPU, {})
        nodes = onnx.ModelProto.FromString(model).graph.node
        lost = [node.name for node in nodes if node.op_type == missing and name == CUDA]
        kept = [node.name for node in nodes if node.name not in lost]
        strict = options.entries.get("session.disable_cpu_ep_fallback") == "1"
        if lost and strict and situation.strict_is_obeyed:
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : nodes are assigned to the CPU EP")
        placed = {name: kept, **({CPU: lost} if lost else {})}
        in_use = [CUDA, CPU] if name == CUDA else [CPU]
        return FakeSession(replace(situation, placed=placed), in_use, provider_options)

    monkeypatch.setattr(fake, "InferenceSession", session)
    return fake


def test_what_is_never_exported_is_not_tried(pools: Any) -> None:
    assert operations_of(pools) == ["avg_pool_3x3", "max_pool_3x3"]
    assert operations_of(SPACES["S3"]) == ["sep_conv_3x3", "skip_connect"]
    assert len(operations_of(SPACES["S0"])) == 7


def test_every_operation_lands_on_a_cpu(pools: Any) -> None:
    found = list(place_operations(operations_of(pools), device="cpu", opset=20))
    assert [(entry.operation, entry.lands) for entry in found] == [
        ("avg_pool_3x3", True),
        ("max_pool_3x3", True),
    ]
    assert all(entry.device is not None and entry.device.startswith("CPU ") for entry in found)
    assert all(entry.providers is not None and set(entry.providers) == {CPU} for entry in found)
    require_all_land(found, "cpu")


def test_both_strides_are_tried() -> None:
    module = placement._Alone("max_pool_3x3")
    assert (module.stride1.stride, module.stride2.stride) == (1, 2)
    skip = placement._Alone("skip_connect")
    assert isinstance(skip.stride1, torch.nn.Identity)
    assert isinstance(skip.stride2, FactorizedReduce)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "strictness ignored"])
def test_a_pooling_that_lands_on_the_cpu_is_named(
    pools: Any, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernel(Situation(strict_is_obeyed=strict), "MaxPool", monkeypatch)
    average, maximum = place_operations(operations_of(pools), device="cuda", opset=20)
    assert average.lands
    assert average.device == "CUDA Test GPU (cuda:0, driver 580.65)"
    assert average.providers is not None
    assert set(average.providers) == {CUDA}
    assert not maximum.lands
    assert maximum.device is None
    assert maximum.problem is not None
    assert "2 of " in maximum.problem
    # The fake runtime makes up the operators' names from the nodes'.
    assert "are on CPU instead: stride1/maxpool (Stride1/maxpool), stride2" in maximum.problem
    with pytest.raises(ValidationFailedError, match=r"1 of 2 operations .* on cuda: max_pool_3x3"):
        require_all_land([average, maximum], "cuda")


def test_control_with_all_kernels_everything_lands(
    pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernel(Situation(), "Sigmoid", monkeypatch)
    found = list(place_operations(operations_of(pools), device="cuda:1", opset=20))
    assert [entry.lands for entry in found] == [True, True]
    require_all_land(found, "cuda:1")


def test_cuda_that_does_not_load_places_nothing(
    pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtime.install(Situation(cuda_loads=False), monkeypatch)
    with pytest.raises(ValidationFailedError, match="does not load") as caught:
        list(place_operations(operations_of(pools), device="cuda", opset=20))
    assert "d2nas doctor" in str(caught.value.hint)  # no other space would help


def space_file(folder: Any) -> str:
    path = folder / "pools.toml"
    path.write_text('name = "pools"\nnormal = ["max_pool_3x3", "avg_pool_3x3"]\n')
    return str(path)


def test_the_command_exits_3_with_the_table_shown(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--space", space_file(tmp_path), "--opset", "20"]
    without_kernel(Situation(), "MaxPool", monkeypatch)
    assert run([*command, "--device", "cuda", "--json"]) == 3
    told = capfd.readouterr()
    rows = {row["operation"]: row for row in json.loads(told.out)}
    assert (rows["avg_pool_3x3"]["lands"], rows["max_pool_3x3"]["lands"]) == (True, False)
    assert "do not run on cuda: max_pool_3x3" in told.err
    assert run([*command, "--device", "cpu"]) == 0
    assert "max_pool_3x3\tyes\tCPU " in capfd.readouterr().out


def test_the_command_refuses_what_cannot_be_tried(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["doctor", "--space", "S9"]) == 2
    assert run(["doctor", "--space", space_file(tmp_path), "--device", "cpu", "--opset", "22"]) == 2
    fake_runtime.install(Situation(listed=(CPU,)), monkeypatch)
    assert run(["doctor", "--space", space_file(tmp_path), "--device", "cuda"]) == 2


def test_a_row_says_what_is_wrong() -> None:
    row = Placement("noise", 20, lands=False, problem="no kernel").cells()
    assert row == ("noise", "no", "", "", "no kernel")


def store_of(place: Place) -> list[str]:
    return [path.name for path in (place.store / "versions").glob("*")]


def test_a_gpu_that_is_not_there_ends_a_run_before_the_search(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtime.install(Situation(cuda_loads=False), monkeypatch)
    monkeypatch.setattr(session, "has_gpu", lambda index: False)
    words = ("run", str(place.preset), "--set", "validate.device=cuda")
    assert place.run(*words) == 2
    told = capfd.readouterr().err
    assert "error: CUDA was asked for (cuda:0), but no such GPU answers here" in told
    assert "hint: d2nas doctor shows what loads here; cpu as device needs no GPU" in told
    assert store_of(place) == []
    # A GPU that is there and does not load is a failed validation, which it would be later, too.
    monkeypatch.setattr(session, "has_gpu", lambda index: True)
    assert place.run(*words) == 3
    assert "it does not load (libcublasLt" in capfd.readouterr().err
    assert store_of(place) == []


def test_an_operation_without_a_kernel_ends_a_run_before_the_search(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_kernel(Situation(), "MaxPool", monkeypatch)
    words = ("run", str(place.preset), "--set", "validate.device=cuda")
    words += ("--set", f"search.space={space_file(place.folder)}")
    assert place.run(*words) == 3
    assert "1 of 2 operations do not run on cuda: max_pool_3x3" in capfd.readouterr().err
    assert store_of(place) == []
    # Control: where all have a kernel, the search begins.
    began: list[str] = []
    monkeypatch.setattr(
        "pipeline.running.runner.run_stage", lambda stage, context: began.append(stage) or 1 / 0
    )
    without_kernel(Situation(), "Sigmoid", monkeypatch)
    place.run(*words)
    assert began == ["search"]
    assert "validation will run on cuda, which has all 2 operations" in capfd.readouterr().err


def test_of_a_given_genotype_its_own_operations_are_tried() -> None:
    config = build_config({}, ["derive.genotype=PC_DARTS_cifar"])
    genotype = Genotype.published("PC_DARTS_cifar")
    named = {operation for operation, _ in (*genotype.normal, *genotype.reduce)}
    assert placement._operations(config) == sorted(named)
    assert "dil_conv_5x5" not in named
    assert placement._operations(build_config({}, [])) == operations_of(SPACES["S0"])


def test_what_auto_found_is_said_once_and_only_where_something_runs(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtime.install(Situation(cuda_loads=False), monkeypatch)
    monkeypatch.setattr("pipeline.running.runner.run_stage", lambda stage, context: 1 / 0)
    words = ("run", str(finished.preset))
    finished.run(*words, "--set", "search.arch_lr=0.02")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "will run on" in line]
    assert line.startswith("validation will run on the CPU, as CUDA does not: it does not load (")
    for setting in ("validate.device=cpu", "export.opset=19"):
        finished.run(*words, "--set", setting, "--set", "search.arch_lr=0.02")
        shown = capfd.readouterr().err
        assert ("will run on" in shown) == (setting != "validate.device=cpu")
    finished.run(*words, "--set", "export.opset=19")
    assert "will run on" not in capfd.readouterr().err  # nothing that takes long is to run
    assert finished.run(*words) == 0
    assert "will run on" not in capfd.readouterr().err


def test_every_commands_hint_names_the_device_that_needs_no_gpu(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runtime.install(Situation(cuda_loads=False), monkeypatch)
    monkeypatch.setattr(session, "has_gpu", lambda index: False)
    bundle = str(finished.exported / "toy")
    for command in (
        ["doctor", "--space", "S3"],
        ["serve", bundle, "--port", "0"],
        ["verify", bundle],
        ["predict", bundle, str(finished.preset)],
        ["evaluate", bundle, str(finished.folder)],
    ):
        assert run([*command, "--device", "cuda"]) == 2
        told = capfd.readouterr().err
        assert "; cpu as device needs no GPU" in told
        assert "validate.device" not in told
    assert finished.run("validate", "toy", "--device", "cuda") == 2
    assert "; cpu as device needs no GPU" in capfd.readouterr().err
