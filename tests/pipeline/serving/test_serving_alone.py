"""Serving where nothing that trains is installed.

A real installation, of half a gigabyte: ``python -m pytest -m installs``.
"""

import json
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import without_training
from bundles import bundle_of
from children import PROJECT
from PIL import Image
from served import serving
from toy import Place

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = PROJECT / "pipeline" / "serving" / "requirements.txt"
PROGRAM = (without_training.__file__,)


def run(*words: str, program: tuple[str, ...] = PROGRAM) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *program, *words], capture_output=True, text=True)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("L", (9, 7), 80).save(tmp_path / "grey.png")
    return str(tmp_path / "grey.png")


def test_what_is_asked_for_is_what_the_package_declares() -> None:
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    extra = DECLARED["optional-dependencies"]["serve"]
    assert set(lines) <= {*DECLARED["dependencies"], *extra}
    assert set(extra) <= set(lines)
    assert not [line for line in lines if line.startswith(without_training.TRAINS)]


def test_a_bundle_answers_without_what_trains(finished: Place, picture: str) -> None:
    bundle = str(bundle_of(finished))
    for words in (["verify", bundle], ["predict", bundle, picture], ["ls"], ["doctor"]):
        store = ["--store", str(finished.store)] if words[0] in ("ls", "doctor") else []
        found = run(*words, "--json", *store)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout) == json.loads(
            run(*words, "--json", *store, program=("-m", "d2nas")).stdout
        ) or words == ["doctor"]


def test_a_bundle_is_served_without_what_trains(finished: Place) -> None:
    served = serving(bundle_of(finished), program=PROGRAM)
    with served as (_, url, _lines), urllib.request.urlopen(f"{url}/v2/health/ready") as answer:
        assert answer.status == 200


def test_control_what_trains_is_told_as_missing(finished: Place) -> None:
    found = run("derive", "toy", "--fresh", "--store", str(finished.store))
    assert found.returncode == 2
    assert "the package torch is not installed" in found.stderr
    assert "pip install . in the clone brings it" in found.stderr


@pytest.mark.installs
def test_an_installation_of_its_own_serves(finished: Place, picture: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    source = shutil.copytree(
        PROJECT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "tests", "*.egg-info")
    )
    pip = (str(tmp_path / "venv/bin/pip"), "install", "--quiet")
    subprocess.run([*pip, "-r", source / "pipeline/serving/requirements.txt"], check=True)
    subprocess.run([*pip, "--no-deps", source], check=True)
    d2nas, bundle = str(tmp_path / "venv/bin/d2nas"), str(bundle_of(finished))
    for words in (["verify", bundle], ["predict", bundle, picture]):
        done = subprocess.run([d2nas, *words, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    listed = subprocess.run([*pip[:1], "list"], capture_output=True, text=True, check=True)
    assert "torch" not in listed.stdout
