"""A store and a bundle as this d2nas writes them, to be read by all later ones.

    python tests/old_artifacts.py tests/data/schema-N

is run once per schema, before it is left behind. Everything is small and relative, so that no path
of a machine stands in it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from tiny import SPACE, TINY

RUN = "old"
SMALL = """
[settings]
"data.train_images" = 64
"retrain.num_cells" = 2
"retrain.init_channels" = 4
"retrain.auxiliary" = false
"retrain.epochs" = 1
"retrain.batch_size" = 16
"""
STUDY = f'methods = ["random"]\nspaces = ["S2"]\nseeds = [0]\n{SMALL}'


def write(folder: Path) -> None:
    """Write ``folder/store``, a version of every kind, and a bundle in ``folder/exported``."""
    from pipeline.cli import run
    from pipeline.running import runner

    runner.KEPT_CHECKPOINTS = 1  # type: ignore[misc]
    runner.platform.node = lambda: "somewhere"  # type: ignore[assignment]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        Path("few.toml").write_text(f'name = "few"\n{SPACE}')
        Path(f"{RUN}.toml").write_text(TINY.format(space='"few.toml"'))
        Path("study.toml").write_text(STUDY)
        for seconds, words in (
            (0.0, ["run", f"{RUN}.toml", "--exported", "exported"]),
            (1e9, ["study", "study.toml"]),
        ):
            runner.CHECKPOINT_SECONDS = seconds
            sys.argv = ["d2nas", *words]
            assert run([*words, "--store", "store"]) == 0
        os.chdir(before)
        for part in ("store/versions", "store/runs", "exported"):
            shutil.copytree(Path(work) / part, folder / part)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
