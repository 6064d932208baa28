"""``d2nas push``: a verified bundle, whole or not at all, and no secret told."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import yaml
from bundles import bundle_of
from hub import OWN_FILES, TOKEN, Hub, serving
from toy import Place
from trackers import calls, stand_in

from pipeline.cli import run

REPOSITORY = "someone/digits"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in of the Hub, to which the token of the environment gives access."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # As in a process of its own, which d2nas tells before it imports the client.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before it retries
    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def push(place: Place, *words: str, target: str = f"hf:{REPOSITORY}") -> int:
    return run(["push", target, str(bundle_of(place)), *words])


def download(hub: Hub, folder: Path) -> Path:
    """Write what a download of the repository gives."""
    for path, data in hub.repositories[REPOSITORY].files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_what_is_pushed_verifies_where_it_is_downloaded(
    finished: Place, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["pushed"], told["private"], told["removed"]) == (True, True, [])
    found = hub.repositories[REPOSITORY]
    assert found.private
    assert found.commits[1:] == [told["commit"]]
    got = download(hub, tmp_path / "got")
    original = {p.relative_to(bundle_of(finished)): p.read_bytes() for p in files_of(finished)}
    assert {p.relative_to(got / "toy"): p.read_bytes() for p in walk(got / "toy")} == original
    assert {path.name for path in got.iterdir()} == {"toy", "README.md", *OWN_FILES}
    assert run(["verify", str(got / "toy"), "--digest", told["digest"]]) == 0
    assert told["files"].keys() | OWN_FILES.keys() == found.files.keys()


def walk(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def files_of(place: Place) -> list[Path]:
    return walk(bundle_of(place))


def test_the_repositorys_page_is_the_card_and_says_what_the_hub_reads(
    finished: Place, hub: Hub
) -> None:
    assert push(finished) == 0
    content = hub.repositories[REPOSITORY].files["README.md"].decode()
    assert content == (bundle_of(finished) / "MODEL_CARD.md").read_text()
    head = yaml.safe_load(content.split("---\n")[1])
    assert head["pipeline_tag"] == "image-classification"
    assert head["library_name"] == "onnx"
    assert "license" not in head
    card = huggingface_hub.ModelCard(content)
    (result,) = card.data.eval_results
    report = json.loads((bundle_of(finished) / "report.json").read_text())
    assert result.metric_value == report["accuracy"]["onnx"]
    assert (result.dataset_name, result.dataset_split) == ("digits", "test")
    assert result.task_type == "image-classification"


def test_a_second_push_leaves_nothing_of_the_first_behind(finished: Place, hub: Hub) -> None:
    assert push(finished) == 0
    found = hub.repositories[REPOSITORY]
    found.files |= {"toy/9/model.onnx": b"old", "LICENSE": b"mine"}
    assert push(finished) == 0
    assert "toy/9/model.onnx" not in found.files
    assert found.files["LICENSE"] == b"mine"


def test_a_public_repository_is_asked_for(
    finished: Place, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, "--public") == 0
    assert not hub.repositories[REPOSITORY].private
    before = hub.repositories[REPOSITORY].commits[:]
    capfd.readouterr()
    assert push(finished) == 2
    assert "is public" in capfd.readouterr().err
    assert hub.repositories[REPOSITORY].commits == before


def test_a_dry_run_asks_nobody(
    finished: Place, hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for target in (f"hf:{REPOSITORY}", "mlflow:digits"):
        assert push(finished, "--dry-run", target=target) == 0
        assert "toy/1/model.onnx" in capfd.readouterr().out
    assert hub.asked == []


def test_a_bundle_that_does_not_verify_is_never_pushed(
    finished: Place, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    card = bundle_of(finished) / "MODEL_CARD.md"
    card.write_text(card.read_text() + "Fit for every purpose.\n")
    assert push(finished) == 4
    assert "MODEL_CARD.md: its SHA-256" in capfd.readouterr().err
    assert hub.asked == []


def test_a_bundle_that_changes_after_it_was_verified_is_not_pushed(
    finished: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.bundle import verification

    real = verification.verify_bundle

    def verify(bundle: Any, *words: Any, **options: Any) -> Any:
        found = real(bundle, *words, **options)
        (bundle.folder / "labels.txt").write_text("others\n")
        return found

    monkeypatch.setattr(verification, "verify_bundle", verify)
    assert push(finished) == 4
    assert "labels.txt" in capfd.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("part", "status", "code", "words"),
    [
        ("/api/models", 401, 2, "does not know the token (401)"),
        ("/api/repos/create", 403, 2, "may not write to someone/digits (403)"),
        ("/commit/", 403, 2, "may not write to someone/digits (403)"),
        ("/commit/", 412, 8, "changed while the bundle was pushed"),
        ("/commit/", 500, 7, "the Hub refuses"),
        ("/preupload/", 0, 7, "the Hub is not there"),
        ("/upload/", 0, 7, "the Hub is not there"),
        ("/commit/", 0, 7, "the Hub is not there"),
    ],
)
def test_what_the_hub_refuses_or_loses_is_told_and_nothing_is_there(
    part: str,
    status: int,
    code: int,
    words: str,
    finished: Place,
    hub: Hub,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.fails[part] = status
    assert push(finished) == code
    talk = capfd.readouterr()
    assert words in talk.err
    assert [line.partition(":")[0] for line in talk.err.splitlines()[-2:]] == ["error", "hint"]
    assert TOKEN not in talk.err + talk.out
    found = hub.repositories.get(REPOSITORY)
    assert found is None or found.files == OWN_FILES
    hub.fails.clear()  # the control
    assert push(finished) == 0
    assert "toy/SHA256SUMS" in hub.repositories[REPOSITORY].files


def test_another_commit_that_comes_first_is_not_written_over(
    finished: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(finished) == 0
    real = huggingface_hub.HfApi.create_commit
    found = hub.repositories[REPOSITORY]

    def meanwhile(*words: Any, **options: Any) -> Any:
        found.files = {**found.files, "LICENSE": b"mine"}
        found.commits.append("f" * 40)
        return real(*words, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", meanwhile)
    assert push(finished) == 8
    assert found.commits[-1] == "f" * 40


def test_without_a_token_or_a_network_it_is_told(
    finished: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert push(finished) == 7
    assert "the Hub is not there" in capfd.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert push(finished) == 2
    assert "HF_TOKEN" in capfd.readouterr().err


@pytest.mark.parametrize(
    "target",
    ["digits", "hf:digits", "hf:a/b/c", "hf:../b", "mlflow:a/b", "s3:a", "hf:a/..", "mlflow:"],
)
def test_a_target_that_is_none_is_told(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["push", target]) == 2
    assert "hf:OWNER/NAME or mlflow:NAME" in capfd.readouterr().err


def test_a_name_that_the_hub_does_not_take_is_told(
    finished: Place, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, target="hf:someone/digits.git") == 2
    assert "invalid name someone/digits.git" in capfd.readouterr().err


def test_who_may_see_it_is_not_asked_of_mlflow(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["push", "mlflow:digits", "--public"]) == 2
    assert "--public" in capfd.readouterr().err


def test_the_bundle_is_that_of_the_name_where_none_is_given(
    finished: Place, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    assert run(["push", "hf:someone/toy"]) == 0
    assert "toy/SHA256SUMS" in hub.repositories["someone/toy"].files


def test_mlflow_gets_the_bundle_and_a_description_of_its_model(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stand_in(monkeypatch, tmp_path)
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    assert push(finished, target="mlflow:digits") == 0
    (version,) = calls(told, "create_model_version")
    assert version["name"] == "digits"
    assert version["source"].endswith("/model")
    got = tmp_path / "artifacts" / "model"
    assert run(["verify", str(got / "toy"), "--digest", version["tags"]["d2nas.digest"]]) == 0
    description = yaml.safe_load((got / "MLmodel").read_text())
    served = (got / description["flavors"]["onnx"]["data"]).read_bytes()
    assert served == (bundle_of(finished) / "1" / "model.onnx").read_bytes()
    (images,) = json.loads(description["signature"]["inputs"])
    assert images["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    (logits,) = json.loads(description["signature"]["outputs"])
    assert logits["tensor-spec"]["shape"] == [-1, 10]
    assert calls(told, "set_terminated")[-1]["status"] == "FINISHED"


@pytest.mark.parametrize("call", ["log_artifacts", "create_model_version"])
def test_a_push_to_mlflow_that_fails_registers_no_version(
    call: str,
    finished: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told = stand_in(monkeypatch, tmp_path)
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("MISBEHAVES", f"{call}:disconnects")
    assert push(finished, target="mlflow:digits") == 7
    assert "does not register it" in capfd.readouterr().err
    assert calls(told, "create_model_version") == []
    assert calls(told, "set_terminated")[-1]["status"] == "FAILED"


@pytest.mark.parametrize("package", ["huggingface_hub", "mlflow"])
def test_a_package_that_is_absent_is_told_before_the_work(
    package: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    target = f"hf:{REPOSITORY}" if package == "huggingface_hub" else "mlflow:digits"
    assert run(["push", target, "nowhere"]) == 2
    assert f"the package {package} is not installed" in capfd.readouterr().err
