"""What is declared is what is imported, and what is declared as lowest works.

The second is a test that installs some gigabytes: ``python -m pytest -m floors``, with uv on PATH.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from toy import TOY

from pipeline.foreign_errors import DISTRIBUTIONS

PROJECT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {plain(re.split(r"[<>=!~\[; ]", one)[0]) for one in requirements}


def imported() -> set[str]:
    """The top-level packages that our modules import, those in functions too."""
    found: set[str] = set()
    for path in [*PROJECT.glob("d2nas/**/*.py"), *PROJECT.glob("pipeline/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"d2nas", "pipeline", "preprocess"}


def undeclared(packages: set[str], requirements: set[str]) -> set[str]:
    named = {package: [name] for package, name in DISTRIBUTIONS.items()}
    distributions = {**metadata.packages_distributions(), **named}
    return {
        package
        for package in packages
        if not requirements & {plain(name) for name in distributions.get(package, [package])}
    }


def test_every_package_that_is_imported_is_declared() -> None:
    requirements = names(DECLARED["dependencies"])
    extras = {*DECLARED["optional-dependencies"]} - {"test"}
    for extra in extras:
        requirements |= names(DECLARED["optional-dependencies"][extra])
    assert len(imported()) > 10
    assert undeclared(imported(), requirements) == set()
    without = undeclared(imported(), requirements - {"pillow", "scipy", "h11", "protobuf"})
    assert without == {"PIL", "scipy", "h11", "google"}  # the control


def test_every_declared_package_has_a_lowest_version() -> None:
    for requirement in DECLARED["dependencies"]:
        assert ">=" in requirement


@pytest.mark.floors
def test_the_lowest_declared_versions_work(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on PATH")
    python, listed = tmp_path / "venv" / "bin" / "python", tmp_path / "lowest.txt"
    lowest = ("--resolution", "lowest-direct", "--extra", "serve", "--extra", "tensorboard")
    compiled = (uv, "pip", "compile", "-q", *lowest, str(PROJECT / "pyproject.toml"))
    subprocess.run([*compiled, "-o", str(listed)], check=True)
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "-r", listed], check=True)
    (tmp_path / "toy.toml").write_text(TOY)
    run = subprocess.run(
        [sys.executable, "-c", "from PIL import Image; Image.new('L', (9, 11)).save('a.png')"],
        cwd=tmp_path,
    )
    assert run.returncode == 0
    commands = ["run toy.toml", "verify", "verify exported/toy", "predict exported/toy a.png"]
    commands += ["ls", "show toy", "doctor", "export toy --precision fp16", "show --config folder"]
    for command in commands:
        done = subprocess.run(
            [python, "-m", "d2nas", *command.split(), "--json"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
        json.loads(done.stdout)  # nothing else is on stdout
