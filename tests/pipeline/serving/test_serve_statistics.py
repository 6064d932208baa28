"""What a server says of its requests, to operators; and pictures that are sent as they are."""

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import (
    INFER,
    MAX_BATCH,
    Reply,
    ask_once,
    binary_request,
    images_of,
    json_request,
    running,
    warm_service,
)
from toy import Place

from pipeline.api import load_bundle
from pipeline.onnx_io.session import open_session
from pipeline.serving import service as serving_service
from pipeline.serving.limits import MIB, PICTURE_BYTES, Limits
from pipeline.serving.protocol import Times
from pipeline.serving.service import InferenceService
from pipeline.serving.statistics import Statistics

STATS, CLASSIFY = "/v2/models/toy/stats", "/v2/models/toy/classify"


@pytest.fixture
def url() -> Iterator[str]:
    with running(warm_service()[0]) as url:
        yield url


def metrics(url: str) -> dict[str, float]:
    """The values by name, as Prometheus reads them."""
    reply = ask_once(url, "GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'nv_inference_request_success{model="toy",version="1"} ' in reply.body
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            assert sample.labels == {"model": "toy", "version": "1"}
            # The reader gives counters the ending of OpenMetrics.
            found[sample.name.removesuffix("_total")] = sample.value
            assert family.type == ("gauge" if "pending" in sample.name else "counter")
    return found


def stats(url: str) -> Any:
    reply = ask_once(url, "GET", STATS)
    assert reply.status == 200
    (found,) = json.loads(reply.body)["model_stats"]
    return found


def infer(url: str, number: int) -> Reply:
    body, headers = binary_request(images_of(number))
    return ask_once(url, "POST", INFER, body, headers)


def test_requests_are_counted_and_timed(url: str) -> None:
    assert set(metrics(url).values()) == {0.0}
    assert stats(url)["inference_stats"]["success"] == {"count": 0, "ns": 0}
    for number in (1, 3, 3):
        assert infer(url, number).status == 200
    assert infer(url, MAX_BATCH + 1).status == 400
    assert ask_once(url, "POST", INFER, b"{").status == 400
    found = metrics(url)
    assert found["nv_inference_request_success"] == 3
    assert found["nv_inference_request_failure"] == 2
    assert found["nv_inference_count"] == 7
    assert found["nv_inference_exec_count"] == 3
    assert found["nv_inference_pending_request_count"] == 0
    parts = [found[f"nv_inference_{one}_duration_us"] for one in PARTS]
    assert 0 < sum(parts) <= found["nv_inference_request_duration_us"] + len(parts)
    told = stats(url)
    assert (told["name"], told["version"]) == ("toy", "1")
    assert (told["inference_count"], told["execution_count"]) == (7, 3)
    assert told["last_inference"] > 1.6e12
    assert told["inference_stats"]["fail"]["count"] == 2
    assert [one["batch_size"] for one in told["batch_stats"]] == [1, 3]
    assert [one["compute_infer"]["count"] for one in told["batch_stats"]] == [1, 2]
    whole = told["inference_stats"]["compute_infer"]["ns"]
    assert whole == sum(one["compute_infer"]["ns"] for one in told["batch_stats"])


PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


def test_a_version_has_statistics_and_another_model_has_none(url: str) -> None:
    assert ask_once(url, "GET", "/v2/models/toy/versions/1/stats").status == 200
    assert ask_once(url, "GET", "/v2/models/toy/versions/2/stats").status == 404
    assert ask_once(url, "GET", "/v2/models/other/stats").status == 404
    assert ask_once(url, "POST", STATS, b"").status == 405
    every = ask_once(url, "GET", "/v2/models/stats")
    assert json.loads(every.body)["model_stats"][0]["name"] == "toy"
    (metadata,) = [json.loads(ask_once(url, "GET", "/v2").body)]
    assert "statistics" in metadata["extensions"]


def test_a_request_in_work_is_pending_and_what_waits_is_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, _ = warm_service()
    begun, go = threading.Event(), threading.Event()
    really = InferenceService._run

    def held(self: InferenceService, images: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return really(self, images)

    monkeypatch.setattr(InferenceService, "_run", held)
    with running(service, Limits(num_workers=1)) as url:
        threads = [threading.Thread(target=infer, args=(url, 1)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        while metrics(url)["nv_inference_pending_request_count"] < 2:
            pass
        assert metrics(url)["nv_inference_request_success"] == 0
        go.set()
        for thread in threads:
            thread.join(60)
        found = metrics(url)
        assert found["nv_inference_pending_request_count"] == 0
        # One of them waited for the other, and was computed at once.
        queue, own = (stats(url)["inference_stats"][key] for key in ("queue", "compute_infer"))
        assert (queue["count"], own["count"]) == (2, 2)
        assert queue["ns"] > 0


def test_statistics_are_the_sums_of_what_was_told() -> None:
    one = Statistics('a "name"\n', "3")
    for ns, queue, times in ((100, 10, Times(2, 5, 20, 30, 40)), (200, 1, Times(2, 6, 2, 3, 4))):
        one.begin()
        one.succeed(ns, queue, times)
    one.begin()
    one.fail(7)
    (found,) = one.to_dict()["model_stats"]
    assert found["inference_stats"] == {
        "success": {"count": 2, "ns": 300},
        "fail": {"count": 1, "ns": 7},
        "queue": {"count": 2, "ns": 11},
        "compute_input": {"count": 2, "ns": 22},
        "compute_infer": {"count": 2, "ns": 33},
        "compute_output": {"count": 2, "ns": 44},
    }
    families = list(text_string_to_metric_families(one.metrics()))
    assert {sample.labels["model"] for one in families for sample in one.samples} == {'a "name"\n'}


# Pictures


def picture(place: Place, kind: str = "PNG") -> tuple[bytes, Any]:
    """A picture's file, and what the library answers for it."""
    bundle = load_bundle(place.exported / "toy")
    image = Image.fromarray((np.arange(30 * 20) % 251).astype(np.uint8).reshape(20, 30))
    content = io.BytesIO()
    image.save(content, kind)
    file = place.folder / f"picture.{kind.lower()}"
    file.write_bytes(content.getvalue())
    (predicted,) = bundle.predict([str(file)])
    return content.getvalue(), predicted


@pytest.fixture
def served_bundle(finished: Place) -> Iterator[tuple[Place, str]]:
    bundle = load_bundle(finished.exported / "toy").bundle
    service = InferenceService(bundle, open_session(bundle.model, device="cpu", num_threads=1))
    service.warm_up()
    with running(service) as url:
        yield finished, url


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_answered_as_predict_answers_it(
    served_bundle: tuple[Place, str], kind: str
) -> None:
    place, url = served_bundle
    content, predicted = picture(place, kind)
    for path in (CLASSIFY, "/v2/models/toy/versions/1/classify"):
        reply = ask_once(url, "POST", path, content)
        assert reply.status == 200
        told = json.loads(reply.body)
        assert (told["model_name"], told["model_version"]) == ("toy", "1")
        classes = [one["class"] for one in told["predictions"]]
        assert classes == [*predicted.classes[: len(classes)]]
        found = [one["probability"] for one in told["predictions"]]
        assert found == pytest.approx([*predicted.probabilities[: len(found)]], abs=1e-5)
    assert metrics(url)["nv_inference_count"] == 2


def test_what_is_no_picture_is_refused(
    served_bundle: tuple[Place, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, url = served_bundle
    content, _ = picture(place)
    refused = ask_once(url, "POST", CLASSIFY, b"no picture")
    assert refused.status == 400
    assert "cannot be read as an image" in refused.error
    assert "none of PNG, JPEG, WEBP" in refused.error
    tiff = ask_once(url, "POST", CLASSIFY, picture(place, "TIFF")[0])
    assert "none of PNG, JPEG, WEBP" in tiff.error
    assert ask_once(url, "POST", CLASSIFY, content[:60]).status == 400
    assert ask_once(url, "POST", CLASSIFY, b"").status == 400
    assert ask_once(url, "GET", CLASSIFY).status == 405
    monkeypatch.setattr(serving_service, "MAX_PIXELS", 599)
    refused = ask_once(url, "POST", CLASSIFY, content)
    assert refused.status == 400
    assert "30 x 20 pixels, at most 599" in refused.error
    monkeypatch.setattr(serving_service, "MAX_PIXELS", 600)
    assert ask_once(url, "POST", CLASSIFY, content).status == 200
    assert metrics(url)["nv_inference_request_failure"] == 5


def test_a_picture_may_be_longer_than_a_request(served_bundle: tuple[Place, str]) -> None:
    place, url = served_bundle
    content, _ = picture(place)
    long = content + bytes(2 * MIB)  # what follows a picture is not read
    assert ask_once(url, "POST", CLASSIFY, long).status == 200
    assert ask_once(url, "POST", INFER, long).status == 413  # control
    refused = ask_once(url, "POST", CLASSIFY, bytes(PICTURE_BYTES + 1))
    assert refused.status == 413
    assert f"expected {PICTURE_BYTES} bytes at most" in refused.error


def test_where_there_is_little_room_pictures_are_shorter() -> None:
    body = json.dumps(json_request(images_of(1))).encode()
    with running(warm_service()[0], Limits(room_bytes=MIB)) as url:
        assert ask_once(url, "POST", INFER, body).status == 200
        refused = ask_once(url, "POST", CLASSIFY, bytes(MIB))
        assert refused.status == 413
