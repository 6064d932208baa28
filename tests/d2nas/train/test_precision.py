"""``search.precision=bf16``: features in bf16; weights, statistics, moments and logits in fp32."""

import pytest
import torch
from rivals import make_cheap
from searches import CHEAP, CPU, config_of, final_state, finish, made_images, search_by
from torch import Tensor, nn

from d2nas.config.registry import search_methods
from d2nas.errors import ConfigError
from d2nas.spaces import SearchSpace
from d2nas.train.precision import compute_type
from d2nas.train.search import Search, search_step

BF16 = "search.precision=bf16"
SAMPLED = ["d2nas", "entangled", "gdas"]
RECTANGULAR = SearchSpace.from_dict(
    {"name": "rectangular", "normal": ["skip_connect", "conv_7x1_1x7"]}
)


OTHERS = tuple(
    name
    for name in search_methods.names()
    if name not in (*SAMPLED, "random") and "bf16" in search_methods.find(name).precisions
)


@pytest.mark.parametrize(
    ("method", "space"),
    [
        *((method, space) for method in (*SAMPLED, "random") for space in ("S0", "S4")),
        *((method, "S4") for method in OTHERS),
        ("d2nas", RECTANGULAR),
    ],
)
def test_a_bf16_search_leaves_finite_fp32_logits_and_weights(
    method: str, space: str | SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cheap(monkeypatch)
    search = search_by(method, BF16, "search.epochs=1", space=space)
    before = [parameter.detach().clone() for parameter in search.logits.parameters()]
    finish(search)
    for name, value in final_state(search).items():
        assert torch.isfinite(value).all(), name
        if not name.startswith("method."):
            assert value.dtype in (torch.float32, torch.float64, torch.int64), name
            assert value.dtype != torch.float64 or name == "sums"
    moved = [not torch.equal(b, p) for b, p in zip(before, search.logits.parameters(), strict=True)]
    assert any(moved) == (method != "random")


def features_of(search: Search) -> set[torch.dtype]:
    """The types of all cells' outputs in a step."""
    seen: set[torch.dtype] = set()
    cells: nn.ModuleList = search.supernet.cells  # type: ignore[assignment]
    for cell in cells:
        cell.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    search_step(search, 0)
    return seen


@pytest.mark.parametrize("recompute", ['"none"', "cell", "op"])
@pytest.mark.parametrize("method", ["d2nas", "gdas"])
def test_features_are_in_the_precision_asked_for(method: str, recompute: str) -> None:
    setting = f"search.recompute={recompute}"
    assert features_of(search_by(method, BF16, setting, space=CHEAP)) == {torch.bfloat16}
    assert features_of(search_by(method, setting, space=CHEAP)) == {torch.float32}


def first_losses(method: str, *overrides: str) -> Tensor:
    """Both halves' losses of the first step, before anything moved far."""
    still = ("search.weight_lr=1e-6", "search.weight_lr_min=0.0")
    search = search_by(method, *still, *overrides, space="S1")
    search_step(search, 0)
    sums = search.trained.sums
    return torch.stack([sums["arch_loss"], sums["weight_loss"]])


@pytest.mark.parametrize("method", [*SAMPLED, "darts"])
def test_the_first_losses_are_close_to_those_in_fp32(method: str) -> None:
    whole, half = first_losses(method), first_losses(method, BF16)
    assert not torch.equal(whole, half)  # it is not the same computation
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)


@pytest.mark.parametrize("method", [*SAMPLED, "pc-darts-2"])
def test_a_bf16_search_resumes_bit_equal(method: str) -> None:
    whole = search_by(method, BF16, space=CHEAP)
    states = [whole.capture(report.step + 1) for report in whole.run()][:-1]
    for state in states:
        again = search_by(method, BF16, space=CHEAP)
        for _ in again.run(state):
            pass
        wanted, got = final_state(whole), final_state(again)
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
        assert whole.metrics == again.metrics


def peak_above_residents(*overrides: str) -> int:
    """What a step needs besides what lives between two steps."""
    data = made_images(size=16, half=64)
    search = search_by("d2nas", "search.batch_size=64", *overrides, space="S2", data=data)
    search.take_step(0)
    resident = sum(tensor.nbytes for tensor in search.resident())
    return round(float(search.trained.sums["peak_bytes"])) - resident


def test_activations_need_little_more_than_half_the_memory() -> None:
    assert peak_above_residents(BF16) < 0.65 * peak_above_residents()


@pytest.mark.parametrize("value", ["fp16", "bf8", "BF16", "16", "true", "[]"])
def test_other_precisions_are_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.precision"):
        config_of("d2nas", f"search.precision={value}")
    assert config_of("d2nas", BF16).search.precision == "bf16"


def pretend_bf16(monkeypatch: pytest.MonkeyPatch, *, in_hardware: bool) -> None:
    """A card on which PyTorch can emulate bf16, and which may have it."""

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or in_hardware

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)


def test_a_device_without_bf16_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_bf16(monkeypatch, in_hardware=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    cuda = torch.device("cuda:0")
    with pytest.raises(ConfigError, match="an old card") as raised:
        compute_type("bf16", cuda)
    assert "precision=fp32" in (raised.value.hint or "")
    assert compute_type("fp32", cuda) == torch.float32
    assert compute_type("bf16", CPU) == torch.bfloat16
    pretend_bf16(monkeypatch, in_hardware=True)
    assert compute_type("bf16", cuda) == torch.bfloat16
