"""Studies: the grid of trials that a file means."""

import json
import random

import pytest
from printed_genotypes import printed
from studies import SMALL, read, trials, write
from toy import Place

from d2nas import SPACES, Genotype
from d2nas.config.registry import search_methods
from d2nas.errors import ConfigError
from d2nas.genotype import PUBLISHED, neighbour, read_genotype
from pipeline.store import joined_run_name, safe_run_name
from pipeline.study.grid import Study, Trial, read_study
from pipeline.study.report import MIN_RANDOM
from pipeline.study.tables import study_names


def test_a_file_without_variants_is_one_block_with_random_beside(place):
    study = read(place, 'methods = ["d2nas"]\nspaces = ["S0", "S3"]\nseeds = [4, 2]\n')
    assert study.name == "small"
    assert trials(study) == [
        ("base", seed, "digits", space, method)
        for seed in (4, 2)
        for method in ("d2nas", "random")
        for space in ("S0", "S3")
    ]


def test_random_is_not_added_where_the_file_names_it(place):
    study = read(place, 'methods = ["random", "d2nas"]\nspaces = ["S0"]\nseeds = [0]\n')
    assert [trial.method for trial in study.trials] == ["random", "d2nas"]


TWO = """
spaces = ["S0"]
seeds = [0]
[[variant]]
name = "one"
methods = ["d2nas"]
[[variant]]
name = "two"
methods = ["random"]
seeds = [0, 1, 2]
[variant.settings]
"""


@pytest.mark.parametrize(
    ("setting", "added"),
    [
        ("", False),
        ('"search.epochs" = 1', False),
        ('"retrain.device" = "cpu"', False),
        ('"retrain.epochs" = 1', True),
        ('"data.train_images" = 500', True),
    ],
)
def test_random_cells_serve_another_variant_with_the_same_data_and_retraining(
    place, setting, added
):
    study = read(place, TWO + setting)
    random = [trial for trial in study.trials if trial.method == "random"]
    expected = [("two", 0), ("two", 1), ("two", 2)]
    assert [(c.variant, c.seed) for c in random] == ([("one", 0)] if added else []) + expected


def test_random_of_another_space_or_data_set_does_not_serve(place):
    for line in ('spaces = ["S3"]', 'data = ["fashion-mnist"]'):
        text = TWO.replace("seeds = [0, 1, 2]", f"seeds = [0]\n{line}")
        assert [c.variant for c in read(place, text).trials if c.method == "random"] == [
            "one",
            "two",
        ]


def test_two_variants_without_random_share_the_added_cells(place):
    study = read(place, TWO.replace('"random"', '"d2nas"') + '"search.epochs" = 1')
    assert [c.variant for c in study.trials if c.method == "random"] == ["one"]


def test_variants_lie_over_the_top_and_the_top_over_the_preset(place):
    study = read(
        place,
        """
        methods = ["random"]
        spaces = ["S0"]
        seeds = [0]
        data = ["digits"]
        [settings]
        "retrain.epochs" = 5
        retrain.batch_size = 32
        [[variant]]
        name = "a"
        [[variant]]
        name = "b"
        seeds = [7]
        spaces = ["S2"]
        [variant.settings]
        "retrain.epochs" = 6
        """,
    )
    first, second = (trial.config for trial in study.trials)
    assert (first.retrain.epochs, second.retrain.epochs) == (5, 6)
    assert first.retrain.batch_size == second.retrain.batch_size == 32
    assert first.retrain.init_channels == 8  # the preset's
    assert (first.run.seed, second.run.seed) == (0, 7)
    assert (first.search.space, second.search.space) == ("S0", "S2")
    assert {trial.config.search.method for trial in study.trials} == {"random"}


def test_the_data_set_is_the_presets_unless_the_file_names_some(place):
    text = 'methods = ["random"]\nspaces = ["S0"]\nseeds = [0]\n'
    assert [trial.config.data.name for trial in read(place, text).trials] == ["digits"]
    study = read(place, text + 'data = ["cifar10", "digits"]\n')
    assert [trial.config.data.name for trial in study.trials] == ["cifar10", "digits"]


def test_the_data_root_is_every_trials(place):
    study = read_study(str(write(place)), data_root="/somewhere")
    assert {trial.config.data.root for trial in study.trials} == {"/somewhere"}


def test_a_search_that_variants_share_is_held_once(place):
    text = TWO.replace("seeds = [0, 1, 2]", "seeds = [0]").replace('"random"', '"d2nas"')
    shared = read(place, text + '"retrain.epochs" = 1')
    runs = {(c.variant, c.method): (c.run, c.search_run) for c in shared.trials}
    assert runs["two", "d2nas"] == ("small-two-d2nas-s0-digits-0", "small-one-d2nas-s0-digits-0")
    assert runs["one", "d2nas"][0] == runs["one", "d2nas"][1]
    own = read(place, text + '"search.epochs" = 1')
    assert all(trial.run == trial.search_run for trial in own.trials)


def test_trainings_of_a_network_share_its_search_and_start_from_other_seeds(place):
    text = SMALL.replace("seeds = [0, 1]", "seeds = [3]\ntrainings = 2")
    text += '[[variant]]\nname = "base"\n[[variant]]\nname = "once"\ntrainings = 1\n'
    found = read(place, text).trials
    base = [c for c in found if (c.variant, c.method) == ("base", "d2nas")]
    assert [(c.training, c.trainings, c.config.run.seed) for c in base] == [(0, 2, 3), (1, 2, 3)]
    assert [c.config.retrain.seed for c in base] == [None, 103]
    assert base[0].run != base[1].run
    assert base[0].search_run == base[1].search_run
    assert base[0].setting == base[1].setting
    # A mean of two is nothing to compare single trainings with.
    (once,) = (c for c in found if (c.variant, c.method) == ("once", "d2nas"))
    assert once.setting != base[0].setting
    assert {c.variant for c in found if c.method == "random"} == {"base", "once"}


def test_run_names_are_names_the_store_takes(place):
    names = [trial.run for trial in read(place, SMALL).trials]
    assert len(set(names)) == len(names)
    long = [joined_run_name("A study of_everything" * 4, "base", str(seed)) for seed in (0, 1)]
    assert len(set(long)) == 2
    for name in (*names, *long, joined_run_name("x", "spaces/my own.toml")):
        assert safe_run_name(name) == name


KNOWN = {Genotype.published(name) for name in PUBLISHED}
GOOD = {"methods": ["d2nas"], "spaces": ["S0"], "seeds": [0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('methods = ["gdsa"]', ["'gdsa'", "hint: did you mean gdas?"]),
        ('spaces = ["S9"]', ["'S9'"]),
        ('data = ["digit"]', ["'digit'", "hint: did you mean digits?"]),
        ("seeds = [0, 1, 0]", ["seeds", "0 is there twice", "hint: "]),
        ('methods = ["d2nas", "d2nas"]', ["'d2nas' is there twice"]),
        ("seeds = []", ["seeds"]),
        ('seeds = ["0"]', ["seeds.0", "hint: "]),
        ("seeds = [true]", ["seeds.0", "hint: "]),
        ("seeds = [-1]", ["seeds.0"]),
        ("sedes = [0]", ["'sedes'", "hint: did you mean seeds?"]),
        (
            '[settings]\n"retrain.epoch" = 1',
            ["retrain.epoch", "hint: did you mean retrain.epochs?"],
        ),
        ('[settings]\n"retrain.epochs" = "many"', ["retrain.epochs='many'"]),
        ("[settings]\nepochs = 1", ["'epochs'", 'hint: for example "retrain.epochs"']),
        ('[settings]\n"run.seed" = 1', ["run.seed is an axis", "hint: name it in seeds"]),
        (
            '[settings]\n"derive.genotype" = "DARTS_V2"',
            ["derive.genotype is an axis", "hint: name it in genotypes"],
        ),
        (
            '[settings]\n"derive.model" = "torchvision:resnet18"',
            ["derive.model is not supported in a study", "hint: d2nas baseline PRESET"],
        ),
        ("genotypes = []", ["genotypes"]),
        ("genotypes = [1]", ["genotypes.0"]),
        ('genotypes = ["DARTS_V3"]', ["'DARTS_V3' is no file's path", "hint: or a published one"]),
        ('genotypes = ["missing.json"]', ["genotypes: ", "missing.json: No such file"]),
        ('genotypes = ["Genotype(normal=[])"]', ["genotypes: ", "reduce is missing"]),
        ('genotypes = ["DARTS_V2", "DARTS_V2"]', ["have the same cells", "hint: name each one"]),
        (
            '[settings]\nsearch.method = "d2nas"',
            ["search.method is an axis", "hint: name it in methods"],
        ),
        ('[[variant]]\nname = "a"\n[[variant]]\nname = "a"', ["'a' is there twice"]),
        ('[[variant]]\nname = "A b"', ["variant.0.name", "hint: "]),
        ('[[variant]]\nsedes = [0]\nname = "a"', ["variant 1", "hint: did you mean seeds?"]),
        ("[[variant]]\nseeds = [0]", ["variant.0.name", "hint: "]),
        ("[variant]\nseeds = [0]", ["variant"]),
        ('preset = "toy"', ["'toy'"]),
        ("seeds = ", ["not valid TOML"]),
    ],
)
def test_a_faulty_file_is_one_line_with_a_hint(place, capfd, text, words):
    key = text.partition(" = ")[0]
    lines = [f"{name} = {json.dumps(value)}" for name, value in GOOD.items() if name != key]
    path = place.folder / "faulty.toml"
    path.write_text("\n".join([*lines, text]))
    assert place.run("study", str(path)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in captured.err
    assert not place.store.exists()


def test_control_the_same_file_without_the_fault_is_read(tmp_path):
    path = tmp_path / "good.toml"
    path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in GOOD.items()))
    assert {trial.method for trial in read_study(str(path)).trials} == {"d2nas", "random"}


@pytest.mark.parametrize("axis", GOOD)
def test_a_missing_axis_is_named(tmp_path, axis):
    path = tmp_path / "missing.toml"
    path.write_text(
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in GOOD.items() if name != axis)
    )
    with pytest.raises(ConfigError, match=f"{axis} is missing"):
        read_study(str(path))


def given(study: Study) -> list[tuple[str | None, str, int]]:
    return [
        (trial.genotype_name, trial.space, trial.seed)
        for trial in study.trials
        if trial.method == "given"
    ]


def test_given_genotypes_need_no_method_and_no_space_but_have_random_cells(place):
    study = read(place, 'genotypes = ["DARTS_V2", "PDARTS"]\nseeds = [0, 3]\n')
    assert given(study) == [
        (name, "S0", seed) for seed in (0, 3) for name in ("DARTS_V2", "PDARTS")
    ]
    others = [(trial.method, trial.space) for trial in study.trials if trial.method != "given"]
    assert others == [("random", "S0")] * 2
    assert [trial.config.derive.genotype for trial in study.trials[:2]] == ["DARTS_V2", "PDARTS"]
    # One derivation of the same cells, whatever the seed.
    v2 = [trial for trial in study.trials if trial.genotype_name == "DARTS_V2"]
    assert {trial.search_run for trial in v2} == {v2[0].run}
    assert v2[0].run != v2[1].run


def test_given_genotypes_stand_beside_searches_which_they_do_not_change(place):
    axes = 'methods = ["random", "d2nas"]\nspaces = ["S3", "S0"]\nseeds = [0]\n'
    axes += '[settings]\n"derive.candidates" = 4\n'
    alone, both = read(place, axes), read(place, f'genotypes = ["DARTS_V1"]\n{axes}')
    assert [trial for trial in both.trials if trial.method != "given"] == list(alone.trials)
    assert given(both) == [("DARTS_V1", "S3", 0)]
    assert {trial.setting for trial in both.trials} == {alone.trials[0].setting}


def test_a_variant_has_genotypes_of_its_own(place):
    text = 'genotypes = ["DARTS_V1"]\nseeds = [0]\n[[variant]]\nname = "a"\n'
    study = read(place, text + '[[variant]]\nname = "b"\ngenotypes = ["PDARTS"]\n')
    found = [(trial.variant, trial.genotype_name) for trial in study.trials]
    assert found == [("a", "DARTS_V1"), ("a", None), ("b", "PDARTS")]


def test_a_presets_genotype_is_given_and_no_method_takes_it(place):
    place.preset.write_text(place.preset.read_text() + '\n[derive]\ngenotype = "DARTS_V2"\n')
    study = read(place, 'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n')
    assert [(trial.method, trial.config.derive.genotype) for trial in study.trials] == [
        ("d2nas", None),
        ("given", "DARTS_V2"),
        ("random", None),
    ]
    assert given(read(place, 'genotypes = ["PDARTS"]\nseeds = [0]\n')) == [("PDARTS", "S0", 0)]


def test_paths_of_genotypes_are_taken_from_the_studys_folder(place, monkeypatch):
    cells = [Genotype.published(name) for name in ("DARTS_V1", "DARTS_V2")]
    for folder, genotype in zip(("a", "b"), cells, strict=True):
        (place.folder / folder).mkdir()
        (place.folder / folder / "Cell.txt").write_text(printed(genotype))
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    study = read(place, 'genotypes = ["a/Cell.txt", "b/Cell.txt"]\nseeds = [0]\n')
    trials = [trial for trial in study.trials if trial.method == "given"]
    assert [read_genotype(trial.config.derive.genotype) for trial in trials] == cells
    assert [trial.genotype_name for trial in trials] == ["Cell", f"Cell-{cells[1].digest[:8]}"]
    with pytest.raises(ConfigError, match="no file's path"):
        read(place, 'genotypes = ["Cell.txt"]\nseeds = [0]\n')


def test_a_hundred_genotypes_have_short_names_each_its_own(place, capfd):
    numbers, cell, texts = random.Random(0), Genotype.published("DARTS_V2"), {}
    while len(texts) < 100:
        cell = neighbour(cell, SPACES["S0"], numbers)
        texts[cell] = printed(cell)
    given = [*PUBLISHED, *(text for cell, text in texts.items() if cell not in KNOWN)]
    path = write(place, f"genotypes = {json.dumps(given)}\nseeds = [0]\n")
    plan = place.json(capfd, "study", str(path), "--plan")
    runs = [trial["run"] for trial in plan]
    assert len(set(runs)) == len(runs) == len(given) + 1
    assert len(given) > 100
    assert all(safe_run_name(run) == run for run in runs)
    assert max(map(len, runs)) < 50
    states = {trial["state"] for trial in plan if trial["method"] == "given"}
    assert states == {"derive is next"}


def test_every_method_of_the_configuration_can_be_a_cell(place):
    text = f'methods = {json.dumps(search_methods.names())}\nspaces = ["S0"]\nseeds = [0]\n'
    study = read(place, text)
    assert [trial.config.search.method for trial in study.trials] == list(search_methods.names())
    assert "random" in search_methods.names()


TABLES = ["table-1", "table-2", "table-3", "table-5"]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_random_cells_enough_and_d2nas_twice(name: str) -> None:
    study = read_study(name)
    assert len({trial.run for trial in study.trials}) == len(study.trials)
    for trial in study.trials:
        if trial.method != "random":
            assert random_cells(study, trial) >= MIN_RANDOM
    recipes = {trial.recipe for trial in study.trials if trial.method == "d2nas"}
    assert recipes == {"paper", "recommended"}
    warm_up = {
        trial.recipe: trial.config.search.warmup_epochs
        for trial in study.trials
        if trial.method == "entangled"
    }
    assert warm_up["paper"] == 0 < warm_up["recommended"]
    assert all(row.source for row in study.copied)


def random_cells(study: Study, trial: Trial) -> int:
    """How many random cells a trial is compared with."""
    return sum(
        (other.method, other.data, other.space) == ("random", trial.data, trial.space)
        and other.setting == trial.setting
        for other in study.trials
    )


def test_the_tables_are_those_of_the_paper() -> None:
    assert study_names() == TABLES
    data = {name: {trial.data for trial in read_study(name).trials} for name in TABLES[:3]}
    assert data == {"table-1": {"cifar10"}, "table-2": {"cifar100"}, "table-3": {"imagenet"}}
    with pytest.raises(ConfigError, match="unknown study"):
        read_study("table-4")


def test_table_5_has_the_sizes_and_searches_of_r_darts() -> None:
    study = read_study("table-5")
    sizes = {
        (trial.data, trial.space): (
            trial.config.retrain.num_cells,
            trial.config.retrain.init_channels,
        )
        for trial in study.trials
    }
    spaces = ("S1", "S2", "S3", "S4")
    assert sizes == {
        **{("cifar10", space): (20, 36 if space in ("S1", "S3") else 16) for space in spaces},
        **{(data, space): (8, 16) for data in ("cifar100", "svhn") for space in spaces},
    }
    seeds = {trial.seed for trial in study.trials if trial.method != "random"}
    cutouts = {trial.method: trial.config.search.cutout for trial in study.trials}
    assert seeds == {0, 1, 2}
    assert {method for method, cutout in cutouts.items() if cutout == 16} == {
        "darts-second-order",
        "r-darts-es",
        "r-darts-ada",
    }
    assert "darts" not in cutouts


def test_table_3_has_direct_searches_by_their_own_recipes_and_transferred_cells() -> None:
    trials = read_study("table-3").trials
    assert {"DARTS_V2", "PDARTS"} <= {trial.genotype_name for trial in trials}
    config = {trial.method: trial.config for trial in trials}
    gdas, pc_darts = config["gdas"].search, config["pc-darts-2"]
    assert (gdas.epochs, gdas.image_fraction) == (90, 0.2)
    weights = pc_darts.search.image_fraction * (1 - pc_darts.data.validation_fraction)
    assert (weights, pc_darts.search.image_fraction - weights) == pytest.approx((0.1, 0.025))
    assert (pc_darts.search.epochs, pc_darts.search.warmup_epochs) == (50, 35)


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
@pytest.mark.parametrize("name", TABLES)
def test_a_scale_keeps_the_rows_and_takes_the_digits_for_every_data_set(
    name: str, scale: str
) -> None:
    whole, reduced = read_study(name), read_study(name, scale=scale)
    assert rows_of(reduced, "stands_for") == rows_of(whole, "data")
    assert {trial.data for trial in reduced.trials} == {"digits"}
    assert {trial.config.data.evaluation for trial in reduced.trials} == {"held-out"}
    assert {trial.run for trial in reduced.trials}.isdisjoint(trial.run for trial in whole.trials)
    assert (whole.is_reduced, reduced.is_reduced) == (False, True)
    longest = max(trial.config.search.epochs for trial in reduced.trials)
    assert longest <= 12
    assert scale in reduced.name


def rows_of(study: Study, data: str) -> set[tuple[str, ...]]:
    """What stands in the study, once for all seeds."""
    names = ("variant", data, "method", "recipe", "genotype_name", "space")
    return {tuple(str(getattr(trial, name)) for name in names) for trial in study.trials}


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown scale 'smok'") as refused:
        read_study("table-1", scale="smok")
    assert refused.value.hint == "did you mean smoke?"


def test_a_recipe_is_an_axis_of_the_papers_searches_alone(place: Place) -> None:
    axes = 'methods = ["d2nas", "darts"]\nspaces = ["S0"]\nseeds = [0]\n'
    axes += 'recipes = ["paper", "recommended"]\n[settings]\n"search.epochs" = 10\n'
    study = read(place, axes)
    found = [(c.method, c.recipe, c.config.search.warmup_epochs) for c in study.trials]
    assert found == [
        ("d2nas", "paper", 0),
        ("d2nas", "recommended", 3),
        ("darts", None, 0),
        ("random", None, 0),
    ]
    assert len({trial.run for trial in study.trials}) == 4


def test_random_cells_may_be_more_than_seeds(place: Place) -> None:
    text = 'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [5, 1]\nrandom = 4\n'
    found = [(trial.method, trial.seed) for trial in read(place, text).trials]
    assert found == [
        *[("d2nas", 5), ("d2nas", 1), ("random", 1)],
        *[("random", 0), ("random", 2), ("random", 3)],
    ]


def test_a_selection_step_is_for_searches_and_leaves_random_cells_alone(place: Place) -> None:
    text = (
        'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n[settings]\n"derive.candidates" = 4\n'
    )
    found = {trial.method: trial.config.derive.candidates for trial in read(place, text).trials}
    assert found == {"d2nas": 4, "random": 1}


def test_a_methods_own_settings_lie_between_the_files_and_a_variants(place):
    study = read(
        place,
        """
        methods = ["d2nas", "gdas"]
        spaces = ["S0"]
        seeds = [0]
        [settings]
        "search.epochs" = 3
        "search.batch_size" = 32
        [method.gdas]
        "search.epochs" = 5
        "search.batch_size" = 16
        [[variant]]
        name = "short"
        [variant.settings]
        "search.batch_size" = 8
        """,
    )
    found = {c.method: (c.config.search.epochs, c.config.search.batch_size) for c in study.trials}
    assert found == {"d2nas": (3, 8), "gdas": (5, 8), "random": (3, 8)}


def test_settings_of_an_unknown_method_are_refused(place):
    with pytest.raises(ConfigError, match="gads"):
        read(place, 'methods = ["d2nas"]\nspaces = ["S0"]\nseeds = [0]\n[method.gads]\n')
