"""The page of a report: what it says, that nothing in it can run, that nothing is made up."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from page_facts import (
    CPU,
    DIGEST,
    GPU,
    HOSTILE,
    MANIFESTS,
    PREPROCESS,
    REPORT,
    a_report,
    hostile_report,
    latency,
    on_gpu,
    page,
)
from toy import Place

from pipeline.gate.judge import is_near_chance
from pipeline.onnx_io.latency import MAX_DRIFT, MAX_VARIATION, MIN_SAMPLES
from pipeline.report import latency as page_latency
from pipeline.report import svg
from pipeline.report.facts import Facts
from pipeline.report.latency_chart import latency_chart
from pipeline.report.page import style_sheet
from pipeline.report.sections import interval
from pipeline.report.words import writable
from pipeline.store import Store


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def words(element: ElementTree.Element) -> str:
    """The text that a person reads."""
    shown = [words(child) + (child.tail or "") for child in element if child.tag != "style"]
    return (element.text or "") + " ".join(["", *shown])


def rows(text: str, caption: str) -> list[list[str]]:
    """The cells of every table whose caption contains some text."""
    return [
        [" ".join(words(cell).split()) for cell in row]
        for table in parsed(text).iter("table")
        if caption in words(table[0])
        for row in table.iterfind("tbody/tr")
    ]


def dangers(text: str) -> list[str]:
    """What could run or load something."""
    root = parsed(text)
    found = [element.tag for element in root.iter() if element.tag in FORBIDDEN]
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.startswith("on"):
                found.append(name)
            if name in ("src", "href", "srcset", "data", "action") and not value.startswith(
                "data:"
            ):
                found.append(value)
    styles = [element.text or "" for element in root.iter("style")]
    styles += [element.attrib.get("style", "") for element in root.iter()]
    return found + re.findall(r"url\(|@import|expression", " ".join(styles))


FORBIDDEN = {"script", "iframe", "object", "embed", "link", "base", "form", "foreignObject"}


class Markup(str):
    """Text that a template takes for markup."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def hostile_page() -> str:
    preprocess = PREPROCESS | {"class_names": list(HOSTILE), "formula": HOSTILE[1]}
    files = {HOSTILE[0]: b""}
    return page(hostile_report(), preprocess=preprocess, name=HOSTILE[1], files=files)


def test_hostile_names_are_text() -> None:
    text = hostile_page()
    assert dangers(text) == []
    names = [e for e in parsed(text).iter("span") if e.attrib.get("class") == "name"]
    readable = [name if "\x00" not in name else "�[31m�" for name in HOSTILE]
    assert [words(name).strip().replace("��", "�") for name in names] == readable


def test_control_without_escaping_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.page.writable", lambda text: Markup(writable(text)))
    with pytest.raises(ElementTree.ParseError):
        dangers(hostile_page())
    only_script = {"class_names": [HOSTILE[0]]}
    report = a_report()
    report["data"]["class_counts"] = {HOSTILE[0]: 3}
    assert "script" in dangers(page(report, preprocess=PREPROCESS | only_script))


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = page()
    assert dangers(text) == []
    assert (
        'http-equiv="Content-Security-Policy" content="default-src &apos;none&apos;'
        in text.replace("'", "&apos;")
    )
    images = list(parsed(text).iter("img"))
    assert len(images) == 3
    assert all(image.attrib["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert "http" not in re.sub(r"base64,[^\"]*|http-equiv", "", text)


@pytest.mark.parametrize(
    "planted",
    ['<img src="https://example.org/x.png" />', "<style>@import 'x'</style>", "<script></script>"],
)
def test_control_what_loads_or_runs_is_found(planted: str) -> None:
    assert dangers(page().replace("</main>", f"{planted}</main>"))


def test_equal_data_give_equal_bytes() -> None:
    def backwards(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: backwards(value[key]) for key in reversed(value)}

    assert page() == page() == page(backwards(REPORT), preprocess=backwards(PREPROCESS))


def test_the_page_is_accessible() -> None:
    root = parsed(page())
    assert root.attrib["lang"] == "en"
    assert words(next(root.iter("title"))) == "demo, version 1: model report"
    levels = [int(e.tag[1]) for e in root.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert {e.attrib["aria-labelledby"] for e in root.iter("section")} == set(ids)
    assert all(e.attrib["alt"] for e in root.iter("img"))
    assert all(e.attrib["aria-label"] for e in root.iter() if e.attrib.get("role"))
    assert all(e[0].tag == "caption" for e in root.iter("table"))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_letters_stand_out_from_the_paper(theme: int) -> None:
    colours = [
        {**dict(re.findall(r"--([a-z-]+): #([0-9a-f]{6})", block))}
        for block in style_sheet().split("* { box-sizing")[0].split("@media")
    ][theme]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for letters in ("ink", "soft", "accent", "good", "warn", "bad"):
        assert contrast(letters, "paper") >= 4.5
    for letters, paper in (("good", "good-tint"), ("bad", "bad-tint"), ("ink", "good-tint")):
        assert contrast(letters, paper) >= 4.5
    assert contrast("rule", "paper") < 4.5  # the control: what is no letter may be faint


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_drawings_have_the_pages_colours(theme: int) -> None:
    block = style_sheet().split("* { box-sizing")[0].split("@media")[theme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    drawn = (svg.LIGHT, svg.DARK)[theme]
    for name in ("paper", "ink", "soft", "rule", "accent"):
        assert drawn[name].replace("#fff", "#ffffff") == colours[name]


def test_nothing_is_markup_but_the_style_and_a_drawing() -> None:
    for template, safe in (
        ("report/page.html.j2", ["css | safe", "latency.chart | safe"]),
        ("bundle/MODEL_CARD.md.j2", ["steps | safe"]),
    ):
        text = resources.files("pipeline").joinpath(template).read_text("utf-8")
        assert re.findall(r"[\w.]+ *\| *safe", text) == safe
        assert "autoescape" not in text


def test_a_drawings_words_are_text() -> None:
    drawn = latency_chart([latency(1, 0.4) | {"batch": HOSTILE[0]}], HOSTILE[1])
    texts = [words(one) for one in ElementTree.fromstring(drawn).iter("text")]
    assert f"batch {HOSTILE[0]}" in texts
    assert "script" not in [one.tag for one in ElementTree.fromstring(drawn).iter()]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all keys of nested data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def without(report: dict[str, Any], path: tuple[Any, ...], *, none: bool) -> dict[str, Any]:
    inner: Any = report
    for key in path[:-1]:
        inner = inner[key]
    if none:
        inner[path[-1]] = None
    else:
        del inner[path[-1]]
    return report


@pytest.mark.parametrize("none", [False, True], ids=["missing", "none"])
def test_whatever_is_not_known_is_left_out(none: bool) -> None:
    for path in places({key: value for key, value in REPORT.items() if key != "retrain"}):
        assert dangers(page(without(a_report(), path, none=none))) == [], path
    for key in PREPROCESS:
        assert dangers(page(preprocess=without(dict(PREPROCESS), (key,), none=none))) == []
    for changes in ({"drawings": {}}, {"manifests": {}}, {"files": {}}, {"genotype_svg": None}):
        assert dangers(page(**changes)) == []
    assert "Not validated" in page({}, preprocess={}, drawings={}, manifests={}, files={})


def test_a_cpu_is_never_shown_as_a_gpu() -> None:
    text = page()
    seen = words(parsed(text))
    assert "Validated on CPU" in seen
    assert CPU in seen
    assert re.findall(r"[^.;]*(?:GPU|CUDA|cuda)[^.;]*", seen) == [" nothing was measured on a GPU"]
    assert [row[1] for row in rows(text, "Latency")] == ["CPU", "CPU", "CPU"]


def test_a_gpu_report_tells_its_cpu_figures_apart() -> None:
    eager = [
        {"batch": b, "runtime": "PyTorch", "kind": "cpu", "mean_ms": 9.0, "stable": True}
        for b in (1, 8)
    ]
    report = a_report(
        device={"kind": "cuda", "label": GPU, "provider": "CUDAExecutionProvider"},
        latency=[on_gpu(latency(1, 0.4)), latency(8, 2.0)],
        eager=eager,
    )
    text = page(report)
    assert "Validated on GPU" in text
    assert [row[1] for row in rows(text, "Latency")] == ["GPU", "CPU"]
    # No factor between two kinds of device.
    assert [row[5] for row in rows(text, "by PyTorch")] == ["n/a another device", "4.3"]


@pytest.mark.parametrize(
    "claim",
    [
        {"kind": "cuda", "provider": "CPUExecutionProvider"},
        {"kind": "cpu", "provider": "CUDAExecutionProvider"},
        {"kind": "cuda", "provider": "SomeExecutionProvider"} | {"kind": "gpu"},
        {},
    ],
)
def test_a_device_that_contradicts_itself_is_called_unknown(claim: dict[str, str]) -> None:
    text = page(a_report(device={"label": GPU, **claim}))
    assert "Validated on unknown device" in text
    assert "Validated on GPU" not in text
    assert 'class="verdict good"' not in text


def test_what_was_not_steady_is_said_in_words() -> None:
    text = page()
    steady = [row[-1] for row in rows(text, "Latency")]
    assert steady == ["stable", "stable", "UNSTABLE medians drift by 31 %, runs vary by 40 %"]
    assert "Latency is UNSTABLE at batch 64" in words(parsed(text)).replace("  ", " ")
    calm = page(a_report(latency=[latency(1, 0.42)]))
    assert "UNSTABLE" not in calm
    silent = page(a_report(latency=[{**latency(1, 0.42), "stable": None, "drift": None}]))
    assert rows(silent, "Latency")[0][-1] == "UNSTABLE not shown to be steady"


def test_a_percentile_without_enough_runs_says_how_many_it_needs() -> None:
    (row,) = [row for row in rows(page(), "Latency") if row[0] == "64"]
    assert row[2:5] == ["17.0", "n/a needs 64 runs", "n/a needs 662 runs"]
    assert {f"p{p}_ms": n for p, n in MIN_SAMPLES.items()} == page_latency.NEEDED_RUNS
    assert (page_latency.MAX_DRIFT, page_latency.MAX_VARIATION) == (MAX_DRIFT, MAX_VARIATION)


def test_a_model_that_did_not_pass_is_not_called_validated() -> None:
    failed = a_report()
    failed["parity"] |= {"passed": False, "verdict": "failed"}
    fooled = a_report()
    fooled["self_test"] = {"passed": False, "rejected": [], "accepted": ["one weight 1 % off"]}
    for report in (failed, fooled):
        text = page(report)
        assert "Not validated" in text
        assert "Validated on" not in text
    assert "The gate let 1 faulty copies through" in page(fooled)


def test_the_protocol_is_told() -> None:
    usual = words(parsed(page()))
    assert "20 epochs on 1,438 training images on a CPU" in usual
    assert "educed protocol" not in usual
    kept = {"retrain": {"config": {"data": {"train_images": 500}}}}
    assert "Reduced protocol" in page(manifests=kept)
    assert "only 500 training images were kept" in page(manifests=kept)
    held_out = a_report()
    held_out["data"]["evaluation"] = "held-out"
    text = words(parsed(page(held_out)))
    assert "Reduced protocol" in text
    assert "359 held-out training images" in text
    assert "test images that no stage" not in text.lower()
    assert "97.6 to 99.7 %" in usual  # Wilson's interval of 356 in 359


def test_known_optional_parts_are_shown_and_unknown_ones_are_not() -> None:
    host = [latency(1, 0.5, mode="plain", transfers="host")]
    report = a_report(
        latency_modes=host,
        best_mode="plain",
        refused_modes={"cuda-graph": "answers differ"},
        latency_gate={"max_p99_ms": 5.0, "batch": 1, "transfers": "host"},
        secret={"deeply": "hidden"},
    )
    report["parity"]["batches"][0] |= {"cosine": 0.999999, "top5_agreement": 1.0}
    report["model"]["precision"] = "fp16"
    text = words(parsed(page(report)))
    assert "Mode plain, from host to host: CPU, ms" in text
    assert "Mode cuda-graph was refused: answers differ" in text
    assert "at most 5.00 ms" in text
    assert "least cosine" in text
    assert "computes in float16" in text
    assert "hidden" not in text
    assert "least cosine" not in page()


def test_without_a_search_none_is_claimed() -> None:
    report = a_report(found_by="given: DARTS_V2", found_on_this_data=False)
    del report["lineage"]["search"]
    text = words(parsed(page(report, drawings={}, manifests={})))
    assert "not searched here (given: DARTS_V2)" in text
    assert "found by a search" not in text
    assert "for the architecture" not in text


def test_a_comparison_of_cells_is_told_with_its_trainings() -> None:
    for facts, told in (
        ({"candidates": 12}, "the best of 12 candidate cells on the architecture half"),
        (
            {"candidates": 9, "trainings": 12},
            "the best of 9 candidate cells after 12 short trainings on the architecture half",
        ),
    ):
        assert told in words(parsed(page(manifests=MANIFESTS | {"derive": {"facts": facts}})))


def test_of_a_random_draw_no_search_is_told() -> None:
    text = words(parsed(page(a_report(found_by="random"))))
    assert "its architecture was drawn at random, without a look at any data." in text
    assert "drawn at random from S0, nothing was trained" in text
    assert "the genotype that was drawn" in text
    assert "search.space" in text
    of_a_search = words(parsed(page(a_report())))
    for claim in (
        "for the architecture",
        "6 cells x 8 channels, 12 epochs",
        "the genotype that the search's logits say",
        "search.epochs",
        "on the data it classifies",
    ):
        assert claim not in text
        assert claim in of_a_search  # control


def test_every_id_stands_there_in_full() -> None:
    text = page()
    for index in range(5):
        assert f"{index}{DIGEST[1:]}" in text
    assert REPORT["genotype_digest"] in text


def test_a_bundle_holds_its_page(finished: Place) -> None:
    bundle = finished.exported / "toy"
    text = (bundle / "report.html").read_text()
    assert "  report.html\n" in (bundle / "SHA256SUMS").read_text()
    assert "`report.html`" in (bundle / "MODEL_CARD.md").read_text()
    assert dangers(text) == []
    seen = words(parsed(text))
    assert "Validated on CPU" in seen
    assert "359 test images" in seen
    store = Store(finished.store)
    for stage in ("search", "derive", "retrain", "export", "validate"):
        assert store.open(f"toy/{stage}").id in text
    # Two curves, the cells, the confusion matrix, the reliability, the worst mistakes.
    assert len(list(parsed(text).iter("img"))) == 6
    assert str(finished.folder) not in text


def test_an_accuracy_that_may_be_chance_is_not_shown_in_green() -> None:
    chance = {"largest_class_share": 0.5, "near_chance": True}
    accuracy = {"torch": 0.52, "onnx": 0.52, "test_images": 359} | chance
    text = page(a_report(accuracy=accuracy))
    assert 'class="verdict bad"' in text
    assert "Validated on CPU, but its accuracy may be chance" in text
    assert "52.00 % may be chance: always answering the largest class reaches 50.00 %" in text
    learned = page(a_report(accuracy=accuracy | {"near_chance": False}))
    assert 'class="verdict good"' in learned
    assert "chance" not in words(parsed(learned))


def test_chance_is_judged_by_the_interval_that_the_page_shows() -> None:
    for share, images in ((0.52, 359), (0.6, 359), (0.112, 359), (0.95, 40), (1.0, 12)):
        shown = float(interval(share, images).split(" ")[0]) / 100
        assert is_near_chance(share, images, shown + 0.001)
        assert not is_near_chance(share, images, shown - 0.001)


def test_a_gate_that_was_passed_is_told_with_its_figure() -> None:
    gate = {"max_p99_ms": 2.0, "batch": 1, "transfers": "host", "p99_ms": 1.25, "mode": "plain"}
    gate |= {"kind": "cpu", "stable": True}
    text = page(a_report(latency_gate=gate))
    line = "p99 of batch 1, from host to host, mode plain, at most 2.00 ms: 1.25 ms on CPU"
    assert f"The model passed a gate on latency: {line}." in text
    text = page(a_report(latency_gate=gate | {"stable": False}))
    assert f"{line}, UNSTABLE." in text
    assert "The gate's latency is UNSTABLE" in " ".join(words(parsed(text)).split())


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"pretrained": True}, "from published weights"),
        ({"pretrained": False}, "from scratch"),
        ({}, "from scratch"),
    ],
)
def test_the_lineage_tells_what_the_final_training_began_from(
    changes: dict[str, Any], begins: str
) -> None:
    report = a_report(retrain=REPORT["retrain"] | changes)
    lines = {stage: line for stage, line, _ in Facts("x", 1, report, PREPROCESS, MANIFESTS).lineage}
    assert lines["retrain"].startswith(f"{begins}, 20 epochs of 1,438 images")
