"""The house rules: imports one way, lint, types, banned calls, what the wheel installs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for package in ("d2nas", "pipeline") for path in (ROOT / package).rglob("*.py")
)
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tool(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=600
    )


def lint_imports(cwd: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; sys.path.insert(0, ''); "
        "from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    return tool("-c", script, "--no-cache", cwd=cwd)


def test_imports_go_one_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def copy_of_sources(folder: Path) -> None:
    for path in SOURCES:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())


def test_control_an_upward_import_is_reported(tmp_path: Path) -> None:
    copy_of_sources(tmp_path)
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    low = tmp_path / "d2nas" / "spaces.py"
    low.write_text(low.read_text() + "\nfrom .train import search  # upward\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "d2nas.spaces" in done.stdout


def test_every_module_stands_in_the_import_contracts() -> None:
    """The first names every module or folder of both packages, the others a folder's modules."""
    listed = {
        f"{container}.{name.strip()}" if container else name.strip()
        for contract in CONFIG["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for container in contract.get("containers", [""])
        for layer in contract["layers"]
        for name in layer.split("|")
    }
    ordered = {name.rpartition(".")[0] for name in listed}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        for depth in range(2, len(parts) + 1):
            if parts[depth - 1] != "__init__" and ".".join(parts[: depth - 1]) in ordered:
                assert ".".join(parts[:depth]) in listed, path


def test_ruff_is_clean() -> None:
    done = tool("-m", "ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout
    done = tool("-m", "ruff", "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout


def test_types_are_strict() -> None:
    done = tool("-m", "mypy")
    assert done.returncode == 0, done.stdout


def test_control_mypy_is_strict(tmp_path: Path) -> None:
    (tmp_path / "loose.py").write_text("def loose(x):\n    return x\n")
    done = tool(
        "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "loose.py")
    )
    assert done.returncode != 0


BANNED_NAMES = {
    "__import__",
    "compile",
    "eval",
    "exec",
    "numpy.lib.format.read_array",
    "onnx.load",  # opens the files that a model names, unless it is told not to
    "onnx.load_external_data_for_model",
    "onnx.load_model",
    "pandas.read_pickle",
    "pandas.to_pickle",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.jit.load",
    "torch.load",
    "torch.manual_seed",
    "torch.package.PackageImporter",
    "torch.save",
    "torch.serialization.load",
    "torch.serialization.save",
}
"""Whether called or handed on, under whatever name they are imported."""
GLOBAL_SEED = ("d2nas/randomness.py", "uses torch.manual_seed")
"""Where PyTorch's own generators may be seeded, between two states of them that are kept."""
BANNED_IMPORTS = {
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "hickle",
    "joblib",
    "jsonpickle",
    "marshal",
    "oyaml",
    "pickle",
    "pickletools",
    "ruamel",
    "shelve",
    "yaml",
}
ONE_HOME = {
    "typer": ("pipeline/cli", "pipeline/commands/"),
    "rich": ("pipeline/console.py",),
    "onnx": (
        "pipeline/onnx_io/",
        "pipeline/gate/",
        "pipeline/identity/",
        "pipeline/latency/graphs.py",
        "pipeline/latency/memory.py",
    ),
    "onnxruntime": ("pipeline/onnx_io/",),
    "fcntl": "pipeline/store/",
}


def imported(tree: ast.AST) -> dict[str, str]:
    """What each name that an import binds stands for, by its full name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name of what an expression stands for; empty if it is no plain name."""
    if isinstance(node, ast.Name):
        name = names.get(node.id, node.id)
    elif isinstance(node, ast.Attribute) and (owner := full_name(node.value, names)):
        name = f"{owner}.{node.attr}"
    else:
        return ""
    return name.removeprefix("builtins.")


def is_banned(node: ast.AST, names: dict[str, str]) -> str:
    """Why an expression or an ``except`` is not allowed; empty if it is."""
    is_read = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    if is_read and full_name(node, names) in BANNED_NAMES:
        return f"uses {full_name(node, names)}"
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                return "allows pickles"
        module = node.args[0] if node.args else None
        dynamic = full_name(node.func, names) == "importlib.import_module"
        if dynamic and isinstance(module, ast.Constant):
            top = str(module.value).split(".")[0]
            return f"imports {module.value}" if top in BANNED_IMPORTS else ""
    if isinstance(node, ast.ExceptHandler):
        if node.type is None:
            return "bare except"
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        passed_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
        if "BaseException" in [full_name(kind, names) for kind in kinds] and not passed_on:
            return "keeps a BaseException"
    return ""


def problems(source: str, name: str) -> list[str]:
    found = []
    tree = ast.parse(source)
    names = imported(tree)
    alone = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and "load_external_data=False" in map(ast.unparse, node.keywords)
    }
    for node in ast.walk(tree):
        if node not in alone and (why := is_banned(node, names)) and (name, why) != GLOBAL_SEED:
            found.append(f"{name}:{node.lineno} {why}")  # type: ignore[attr-defined]
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            top = module.split(".")[0]
            if top in BANNED_IMPORTS or module in BANNED_NAMES:
                found.append(f"{name}:{node.lineno} imports {module}")
            if top in ONE_HOME and not name.startswith(ONE_HOME[top]):
                found.append(f"{name}:{node.lineno} imports {module} outside its home")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_banned_is_used(path: Path) -> None:
    assert problems(path.read_text(), path.relative_to(ROOT).as_posix()) == []


PLANTED = [
    *(f"import {module}" for module in sorted(BANNED_IMPORTS)),
    *(f"import {module}.x as y" for module in ("yaml", "ruamel")),
    *(f"from {name.rpartition('.')[0]} import {name.rpartition('.')[2]}\n"
      for name in sorted(BANNED_NAMES) if "." in name),
    *(f"import {name.rpartition('.')[0]} as m\nf = m.{name.rpartition('.')[2]}"
      for name in sorted(BANNED_NAMES) if "." in name),
    *(f"{name}('1')" for name in sorted(BANNED_NAMES) if "." not in name),
    "import builtins\nbuiltins.eval('1')",
    "from builtins import eval as e\ne('1')",
    "from torch import load as read\nread('x')",
    "import torch as t\nt.load('x')",
    "import torch\ntorch.jit.load('x')",
    "from torch import hub\nhub.load('x', 'y')",
    "__import__('pickle')",
    "import importlib\nimportlib.import_module('pickle')",
    "from importlib import import_module\nimport_module('_pickle')",
    "from ruamel import yaml",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "import numpy as np\nnp.load('x', allow_pickle=flag)",
    "import pandas as pd\npd.read_pickle('x')",
    "try:\n    pass\nexcept:\n    pass",
    "try:\n    pass\nexcept BaseException:\n    pass",
    "try:\n    pass\nexcept (OSError, BaseException) as error:\n    print(error)",
    "import onnxruntime",
    "from typer import Typer",
]  # fmt: skip
ALLOWED = [
    "import re\nre.compile('x')",
    "import torch\ntorch.compile(torch.nn.Linear(1, 1)).eval()",
    "import numpy as np\nnp.load('x', allow_pickle=False)",
    "import onnx\nonnx.load('x', load_external_data=False)",
    "from .codec import load\nload('x')",
    "try:\n    pass\nexcept BaseException:\n    print()\n    raise",
]


@pytest.mark.parametrize("planted", PLANTED)
def test_control_a_planted_call_is_reported(planted: str) -> None:
    assert problems(
        planted, "pipeline/onnx_io/session.py" if "onnx." in planted else "d2nas/data/images.py"
    )


@pytest.mark.parametrize("planted", ALLOWED)
def test_control_what_is_allowed_is_not_reported(planted: str) -> None:
    assert problems(planted, "pipeline/onnx_io/session.py") == []


def test_the_wheel_installs_exactly_two_packages(tmp_path: Path) -> None:
    copy_of_sources(tmp_path / "source")
    source = tmp_path / "source"
    extras = [*ROOT.glob("pipeline/presets/*.toml"), *ROOT.glob("d2nas/data/sets/digits.*[tz]")]
    extras += [path for ending in ("css", "j2") for path in ROOT.glob(f"pipeline/**/*.{ending}")]
    for path in extras:
        (source / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    for name in ("README.md", "d2nas/py.typed", "pipeline/py.typed"):
        (source / name).write_text((ROOT / name).read_text())
    for stray in ("exported", "benchmarks", "tests"):
        (source / stray).mkdir()
        (source / stray / "stray.py").write_text("")
    done = tool(
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"d2nas", "pipeline"}
    packaged = {name for name in names if name.endswith(".py")}
    assert packaged == {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {path.relative_to(ROOT).as_posix() for path in extras} <= set(names)
    some = {"pipeline/presets/quickstart.toml", "pipeline/report/page.css"}
    assert {*some, "d2nas/data/sets/digits.csv.gz", "d2nas/data/sets/digits.txt"} <= set(names)


def test_importing_the_library_loads_neither_torch_nor_the_application() -> None:
    script = "import sys, d2nas; print(sorted({'torch', 'pipeline'} & set(sys.modules)))"
    assert tool("-c", script).stdout.strip() == "[]"


def test_importing_the_report_loads_neither_torch_nor_templates() -> None:
    script = (
        "import sys, pipeline.report.page, pipeline.bundle.prediction, pipeline.serving.service; "
        "print(sorted({'torch', 'jinja2'} & set(sys.modules)))"
    )
    assert tool("-c", script).stdout.strip() == "[]"


def test_a_foreign_pipeline_is_named_and_not_run(tmp_path: Path) -> None:
    foreign = tmp_path / "pipeline"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import d2nas; "
        "from d2nas.__main__ import main; main()"
    )
    done = tool("-c", script)
    assert done.returncode == 2
    assert str(foreign) in done.stderr
    assert "foreign code ran" not in done.stderr


def test_the_readme_has_two_commands_that_need_nothing_else() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    setup, test = blocks[0], blocks[1]
    assert "d2nas run quickstart" in setup
    assert test.strip() == ".ci/run"
    for block in (setup, test):
        assert "git clone" not in block
        assert not re.search(r"\bcd ", block)
