"""Generated references and the README's example: as the code is today."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


def test_the_references_are_what_the_code_says() -> None:
    done = run("docs/generate.py", "--check")
    assert done.returncode == 0, done.stderr


def test_control_a_stale_reference_is_told(tmp_path: Path) -> None:
    (tmp_path / "generate.py").write_text((ROOT / "docs" / "generate.py").read_text())
    (tmp_path / "commands.md").write_text("old")
    done = run(str(tmp_path / "generate.py"), "--check")
    assert done.returncode == 1
    assert "commands.md" in done.stderr


def test_the_readmes_example_searches(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = run("-c", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Cost(params=" in done.stdout
