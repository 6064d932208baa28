"""A package that is not installed is named, with what brings it; never a traceback."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import without_packages
from children import PROJECT

from pipeline.preflight.doctor import EXTRAS


def run(absent: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, without_packages.__file__, absent, *words]
    return subprocess.run(command, capture_output=True, text=True)


def hint_of(found: "subprocess.CompletedProcess[str]") -> str:
    assert found.returncode == 2, found.stderr
    error, hint = found.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    return hint


@pytest.mark.parametrize(
    ("package", "command", "said"),
    [
        ("torch", ("run", "quickstart", "--plan"), "d2nas needs torch>=2"),
        ("PIL", ("predict", "nowhere", "a.png"), "d2nas needs pillow>="),
        ("google", ("doctor", "--space", "S0"), "d2nas needs protobuf>="),
        ("rich", ("ls",), "d2nas needs rich>="),
        ("pydantic", ("ls",), "d2nas needs pydantic>="),
        (
            "timm",
            ("run", "quickstart", "--set", "retrain.teacher=timm:resnet18"),
            "pip install '.[timm]' in the clone",
        ),
        ("starlette", ("serve", "nowhere"), "pip install '.[serve]' in the clone"),
    ],
)
def test_what_is_absent_is_named_with_what_brings_it(
    package: str, command: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    store = ("--store", str(tmp_path)) if command[0] in ("run", "ls") else ()
    found = run(package, *command, *store)
    assert said in hint_of(found)
    assert f"No module named '{package}" in found.stderr


def findings(absent: str, store: Path) -> dict[str, dict[str, str]]:
    found = run(absent, "doctor", "--json", "--store", str(store))
    assert found.returncode == 0, found.stderr
    return {finding["subject"]: finding for finding in json.loads(found.stdout)}


def test_doctor_names_what_is_absent_and_what_brings_it(tmp_path: Path) -> None:
    found = findings("torch,starlette,h11,tensorboard", tmp_path)
    assert "torch>=" in found["packages"]["detail"]
    assert (
        found["packages"]["advice"]
        == "needed for everything (serving takes fewer): pip install . in the clone"
    )
    assert "starlette>=" in found["extra serve"]["detail"]
    assert "h11>=" in found["extra serve"]["detail"]
    assert "uvicorn" not in found["extra serve"]["detail"]
    assert "pip install '.[serve]' in the clone" in found["extra serve"]["advice"]
    assert "pip install '.[tensorboard]' in the clone" in found["extra tensorboard"]["advice"]
    assert "torch is not installed" in found["torch cuda"]["detail"]
    assert {found[name]["state"] for name in ("packages", "extra serve", "torch cuda")} == {
        "absent"
    }
    # The control: what is there is not called absent.
    assert not {"packages", "extra serve", "extra tensorboard"} & set(findings("", tmp_path))


def test_every_extra_has_its_purpose() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == {"", *project["optional-dependencies"]} - {"test"}
