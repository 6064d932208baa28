"""A study: a grid of methods or given genotypes, spaces, data sets and seeds out of one TOML file.

    preset = "cifar10"                  # what all trials start from; a preset or a TOML file
    methods = ["d2nas", "gdas"]         # random is added: it is what a search must beat
    spaces = ["S0"]
    genotypes = ["DARTS_V2", "my.txt"]  # given, without a search; methods may be left out then
    seeds = [0, 1, 2]
    data = ["cifar10"]                  # default: the preset's
    [settings]                          # on top of the preset, keys as in --set
    "retrain.epochs" = 100
    [method.gdas]                       # what one method needs, on top of that
    "search.epochs" = 250
    [[variant]]                         # named blocks of the grid; what they leave out is as above
    name = "long"
    methods = ["random"]
    [variant.settings]
    "retrain.epochs" = 600
    trainings = 2                       # train each network from two seeds, and take the mean
    recipes = ["paper", "recommended"]  # each search that a recipe is of, once by each
    random = 20                         # random cells to compare with; default: one for each seed
    [[copied]]                          # a row of a paper's table, shown apart; figures as text
    method = "NASNet-A"
    error = "2.65"
    source = "arXiv 1707.07012"

``--scale`` runs the same grid by other settings: those of a file in ``pipeline.study.scales``,
whose data set stands for all of the grid's.

Paths in it are taken from the working directory, as everywhere; those of genotypes from the file's
own folder. Given genotypes are compared with random cells of the first space (default: S0).
"""

import copy
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from d2nas.config import PAPERS_METHODS, Config, Recipe, build_config, other_method
from d2nas.config.registry import data_sets
from d2nas.config.section import Section, Seed
from d2nas.errors import ConfigError, shown_value
from d2nas.files.printed_genotype import is_printed
from d2nas.files.strict_json import digest
from d2nas.files.text_files import read_space
from d2nas.genotype import PUBLISHED, genotype_name, is_genotype_file, read_genotype

from ..presets import read_preset
from ..stages import BY_NAME
from ..store import joined_run_name
from .scales import PAPER_SCALE, read_scale_file, scale_names
from .tables import read_study_file

RANDOM = "random"
GIVEN = "given"
"""What stands as the method of a given genotype."""

_AXIS_OF = {
    "search.method": "methods",
    "search.space": "spaces",
    "data.name": "data",
    "derive.genotype": "genotypes",
    "run.seed": "seeds",
    "retrain.seed": "trainings",
}
TRAINING_STRIDE = 100
"""A network's trainings start from its seed, and from this much further on each."""

_EXAMPLE = 'for example methods = ["d2nas"], spaces = ["S0"], seeds = [0, 1, 2]'


class _Block(Section):
    """Block of settings, of the file's top or of a variant; None: as above."""

    methods: Annotated[list[str], Field(min_length=1)] | None = None
    genotypes: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None
    spaces: Annotated[list[str], Field(min_length=1)] | None = None
    data: Annotated[list[str], Field(min_length=1)] | None = None
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] | None = None
    trainings: Annotated[int, Field(ge=1, le=1000)] | None = None
    recipes: Annotated[list[Recipe], Field(min_length=1)] | None = None
    random: Annotated[int, Field(ge=1, le=1000)] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class _Variant(_Block):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]


class Copied(Section):
    """Row that others published and that is not run here; figures as they print them."""

    method: str
    source: str
    data: str | None = None
    """None: that of the whole study."""
    space: str = ""
    error: str = ""
    """In percent."""
    num: str = ""
    params: str = ""
    macs: str = ""
    gpu_days: str = ""


class _File(_Block):
    preset: str | None = None
    copied: list[Copied] = Field(default_factory=list)
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variant: list[_Variant] = Field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One training of a study's network: searched or given, derived, retrained, evaluated."""

    variant: str
    method: str
    """That of the search, or ``GIVEN``."""
    genotype_name: str | None
    """Name of a given genotype."""
    recipe: str | None
    """``search.recipe``, where the grid has an axis of them and the method reads it."""
    space: str
    data: str
    stands_for: str | None
    """The study's data set in whose place a reduced scale takes ``data``."""
    seed: int
    training: int
    """Which of the network's ``trainings`` this is, from 0."""
    trainings: int
    config: Config
    run: str
    """Name of its run in the store."""
    search_run: str
    """Run that holds its search and derivation: another one's, where a variant searches the very
    same, or the same cells are given.
    """

    @property
    def title(self) -> str:
        """Name for a person."""
        found = f"{self.space}, {self.method}"
        if self.genotype_name is not None:
            found = f"{GIVEN} {self.genotype_name}"
        elif self.recipe is not None:
            found = f"{found} ({self.recipe})"
        data = self.data if self.stands_for is None else f"{self.data} for {self.stands_for}"
        title = f"{self.variant}, {data}, {found}, seed {self.seed}"
        return f"{title}, training {self.training + 1}" if self.trainings > 1 else title

    @property
    def setting(self) -> str:
        """Digest of how it is trained and measured: equal ones can be compared."""
        return setting_of(self.config, self.trainings)


@dataclass(frozen=True)
class Study:
    """A grid, in the order in which its trials run: by variant, then by seed."""

    name: str
    trials: tuple[Trial, ...]
    scale: str = PAPER_SCALE
    copied: tuple[Copied, ...] = ()

    @property
    def is_reduced(self) -> bool:
        """Whether its settings are not its file's."""
        return self.scale != PAPER_SCALE


def read_study(name: str, *, data_root: str | None = None, scale: str = PAPER_SCALE) -> Study:
    """Read a study by name or path; ``data_root`` overrides ``data.root`` of every trial.

    ``scale``: one of ``scale_names()``, by whose settings the grid is run.

    Random cells are added to every variant, data set and space, unless another variant has them
    with the same data and retraining. A genotype in the preset is given like one in the file.
    Raises ``ConfigError`` naming the key.
    """
    what, title = name, Path(name).stem
    if scale not in scale_names():
        raise _unknown(what, "scale", scale, scale_names())
    file = _parse(read_study_file(name), what)
    reduced = None
    if scale != PAPER_SCALE:
        reduced = _parse(read_scale_file(scale), f"scale {scale}")
        title = f"{title}-{scale}"
    base = functools.partial(_base, file.preset, data_root)
    build_config(base(None), what=file.preset or what)
    for method in file.method:
        _check_name(other_method, method, what)
    variants = [_resolve(variant, file, base, what) for variant in _variants(file, what)]
    if reduced is not None:
        reduced_base = functools.partial(_base, reduced.preset, None)
        variants = [_reduced(variant, reduced, reduced_base, scale) for variant in variants]
    drafts = [draft for variant in variants for draft in _drafts(variant)]
    drafts += _missing_random(variants, drafts)
    order = {variant.name: number for number, variant in enumerate(variants)}
    drafts.sort(key=lambda d: (order[d.variant.name], _place(d.seed, d.variant.seeds)))
    return Study(title, tuple(_trials(title, drafts)), scale, tuple(file.copied))


def _place(seed: int, seeds: list[int]) -> int:
    return seeds.index(seed) if seed in seeds else len(seeds) + seed


_Values = dict[str, dict[str, Any]]


def _base(preset: str | None, data_root: str | None, recipe: str | None) -> _Values:
    """Return the preset's values by a recipe, or by its own."""
    values: _Values = {} if preset is None else read_preset(preset, recipe)
    if data_root is not None:
        values.setdefault("data", {})["root"] = data_root
    return values


def setting_of(config: Config, trainings: int) -> str:
    """Digest of the retraining and the images, whatever was searched, and wherever it ran."""
    values = config.to_dict()
    unseen = ("data", "root"), ("data", "validation_fraction")  # the latter by retraining
    for section, key in (("retrain", "device"), ("retrain", "seed"), *unseen):
        del values[section][key]
    measured = {"retrain": values["retrain"], "data": values["data"]}
    return digest(measured if trainings == 1 else {**measured, "trainings": trainings})


@dataclass(frozen=True)
class _Given:
    """A genotype of the file."""

    name: str
    """Short, and other than those of the rest."""
    text: str
    """As ``derive.genotype`` has it."""


@dataclass(frozen=True)
class _Resolved:
    """A variant with nothing left out."""

    name: str
    methods: list[str]
    given: list[_Given]
    spaces: list[str]
    data: list[str]
    seeds: list[int]
    trainings: int
    recipes: list[str]
    """Empty: no axis of them."""
    num_random: int | None
    """None: a random cell for each seed."""
    values: dict[str, dict[str, Any]]
    by_row: dict[tuple[str, str | None], dict[str, dict[str, Any]]]
    """The values with what a method needs on top, by method and recipe."""
    what: str
    stand_in: str | None = None
    """The data set in place of all of ``data``."""


@dataclass(frozen=True)
class _Draft:
    """A network of the grid: its trials without their runs."""

    variant: _Resolved
    method: str
    space: str
    data: str
    seed: int
    config: Config
    given: _Given | None = None
    recipe: str | None = None


def _parse(values: dict[str, Any], what: str) -> _File:
    _check_keys(values, _File, what)
    if isinstance(values.get("method"), str | list):
        raise ConfigError(
            f"{what}: method holds tables, one for what each method needs on top",
            hint="the axis of the grid is methods",
        )
    variants = values.get("variant", [])
    for number, block in enumerate(variants if isinstance(variants, list) else [], start=1):
        if isinstance(block, dict):
            _check_keys(block, _Variant, f"{what}: variant {number}")
    try:
        return _File.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
        raise ConfigError(f"{what}: {where}: {message}", hint=_EXAMPLE) from None


def _check_keys(values: Mapping[str, Any], block: type[_Block], what: str) -> None:
    for key in values:
        if key not in block.model_fields:
            raise _unknown(what, "key", key, sorted(block.model_fields))


def _unknown(what: str, kind: str, name: str, known: Iterable[str]) -> ConfigError:
    close = difflib.get_close_matches(name[:100], list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)
    return ConfigError(f"{what}: unknown {kind} {shown_value(name)}", hint=hint)


def _check_name(find: Callable[[str], object], name: str, what: str) -> None:
    try:
        find(name)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}", hint=error.hint) from None


def _variants(file: _File, what: str) -> list[_Variant]:
    names = [variant.name for variant in file.variant]
    _require_unique(names, f"{what}: variant")
    return file.variant or [_Variant(name="base")]


def _resolve(
    variant: _Variant, file: _File, base: Callable[[str | None], _Values], what: str
) -> _Resolved:
    where = f"{what}: variant {variant.name}" if file.variant else what
    axes: dict[str, Any] = {}
    preset = build_config(base(None))
    genotypes = [_beside(what, each) for each in variant.genotypes or file.genotypes or ()]
    if not genotypes and preset.derive.genotype is not None:
        genotypes = [preset.derive.genotype]
    given = _read_given(genotypes, f"{where}: genotypes")
    methods = variant.methods or file.methods
    defaults: dict[str, list[str]] = {"data": [preset.data.name]}
    if given:
        defaults["methods"] = []
        if methods is None:
            defaults["spaces"] = ["S0"]
    for axis in ("methods", "spaces", "data", "seeds"):
        values = getattr(variant, axis) or getattr(file, axis) or defaults.get(axis)
        if values is None:
            raise ConfigError(f"{where}: {axis} is missing", hint=_EXAMPLE)
        _require_unique(values, f"{where}: {axis}")
        axes[axis] = values
    for method in axes["methods"]:
        _check_name(other_method, method, where)
    for name in axes["data"]:
        _check_name(data_sets.find, name, where)
    for space in axes["spaces"]:
        read_space(space)
    of_file, of_variant = (
        (file.settings, f"{what}: settings"),
        (variant.settings, f"{where}: settings"),
    )
    recipes = list[str](variant.recipes or file.recipes or ())
    _require_unique(recipes, f"{where}: recipes")
    by_row = {
        (method, recipe): _merged(
            base,
            of_file,
            (file.method.get(method, {}), f"{what}: method.{method}"),
            of_variant,
            recipe=recipe,
        )
        for method in axes["methods"]
        for recipe in _recipes_of(method, recipes)
    }
    return _Resolved(
        variant.name,
        given=given,
        values=_merged(base, of_file, of_variant),
        by_row=by_row,
        what=where,
        trainings=variant.trainings or file.trainings or 1,
        recipes=recipes,
        num_random=variant.random or file.random,
        **axes,
    )


def _recipes_of(method: str, recipes: list[str]) -> Sequence[str | None]:
    return recipes if recipes and method in PAPERS_METHODS else (None,)


def _reduced(
    variant: _Resolved, scale: _File, base: Callable[[str | None], _Values], name: str
) -> _Resolved:
    """Return the variant's rows by the settings of a scale, which has seeds and a data set."""
    assert scale.seeds is not None
    assert scale.data is not None
    settings = scale.settings, f"scale {name}: settings"

    def of_row(method: str, recipe: str | None) -> _Values:
        own = scale.method.get(method, {}), f"scale {name}: method.{method}"
        return _merged(base, settings, own, recipe=recipe)

    return replace(
        variant,
        seeds=scale.seeds,
        trainings=1,
        num_random=scale.random,
        values=_merged(base, settings),
        by_row={row: of_row(*row) for row in variant.by_row},
        stand_in=scale.data[0],
    )


def _read_given(genotypes: Iterable[str], what: str) -> list[_Given]:
    """Return given genotypes with a name each. Raises ``ConfigError`` for one that is invalid, or
    there twice.
    """
    found: dict[str, str] = {}
    named: dict[str, _Given] = {}
    for text in genotypes:
        given = build_config({"derive": {"genotype": text}}, what=what).derive.genotype
        assert given is not None
        try:
            cells, name = read_genotype(given).digest, genotype_name(given)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}", hint=error.hint) from None
        if cells in found:
            raise ConfigError(
                f"{what}: {found[cells]} and {name} have the same cells", hint="name each one once"
            )
        found[cells] = name
        if joined_run_name(name) in named:
            name = f"{name}-{cells[:8]}"
        named[joined_run_name(name)] = _Given(name, given)
    return list(named.values())


def _beside(file: str, genotype: str) -> str:
    """Return a genotype with its path, if it is one, taken from the folder of the study's file."""
    if genotype in PUBLISHED or is_printed(genotype):
        return genotype
    path = str(Path(file).absolute().parent / genotype)
    if not is_genotype_file(path):
        raise ConfigError(
            f"{file}: genotypes: {shown_value(genotype)} is no file's path from the study's folder",
            hint="or a published one: " + ", ".join(PUBLISHED),
        )
    return path


def _merged(
    base: Callable[[str | None], _Values],
    *layers: tuple[Mapping[str, Any], str],
    recipe: str | None = None,
) -> _Values:
    """Return the settings of all layers, the last one's over those before, and a ``recipe`` over
    all, on the base that their recipe makes.
    """
    given = [each for settings, what in layers for each in _flat(settings, what)]
    if recipe is not None:
        given.append(("search", "recipe", recipe))
    recipes = [value for section, field, value in given if (section, field) == ("search", "recipe")]
    values = base(recipes[-1] if recipes and isinstance(recipes[-1], str) else None)
    for section, field, value in given:
        values.setdefault(section, {})[field] = value
    return values


def _require_unique(values: list[Any], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{what}: {value!r} is there twice", hint="name each one once")


def _flat(settings: Mapping[str, Any], what: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (section, field, value); TOML reads a key with a dot as a table unless it is quoted."""
    for key, value in settings.items():
        section, dot, field = key.partition(".")
        pairs = {field: value} if dot else value
        if not isinstance(pairs, Mapping):
            raise ConfigError(
                f"{what}: {key!r} is not section.field", hint='for example "retrain.epochs" = 10'
            )
        for name, setting in pairs.items():
            axis = _AXIS_OF.get(f"{section}.{name}")
            if axis is not None:
                raise ConfigError(
                    f"{what}: {section}.{name} is an axis of the grid", hint=f"name it in {axis}"
                )
            yield section, name, setting


def _drafts(variant: _Resolved) -> Iterator[_Draft]:
    for seed in variant.seeds:
        for data in variant.data:
            for space in variant.spaces:
                for method in variant.methods:
                    for recipe in _recipes_of(method, variant.recipes):
                        yield _draft(variant, method, space, data, seed, recipe)
            for given in variant.given:
                config = _configure_given(variant, given, data, seed)
                yield _Draft(variant, GIVEN, variant.spaces[0], data, seed, config, given)


def _draft(
    variant: _Resolved, method: str, space: str, data: str, seed: int, recipe: str | None = None
) -> _Draft:
    values = copy.deepcopy(variant.by_row.get((method, recipe), variant.values))
    for section, field, value in (
        ("search", "method", method),
        ("search", "space", space),
        ("data", "name", variant.stand_in or data),
        ("run", "seed", seed),
        ("derive", "genotype", None),
    ):
        values.setdefault(section, {})[field] = value
    if method == RANDOM:
        # A variant's way of choosing among learned cells is not for what learns nothing.
        values.pop("derive", None)
    config = build_config(values, what=variant.what)
    if config.derive.model is not None:
        raise ConfigError(
            f"{variant.what}: derive.model is not supported in a study",
            hint="d2nas baseline PRESET --model trains a library's network",
        )
    return _Draft(variant, method, space, data, seed, config, recipe=recipe)


def _configure_given(variant: _Resolved, given: _Given, data: str, seed: int) -> Config:
    values = copy.deepcopy(variant.values)
    values["derive"] = {"genotype": given.text}
    values.setdefault("data", {})["name"] = variant.stand_in or data
    values.setdefault("run", {})["seed"] = seed
    return build_config(values, what=variant.what)


def _missing_random(variants: list[_Resolved], drafts: list[_Draft]) -> list[_Draft]:
    """Return the random cells that no variant has for some retraining, data set and space."""
    covered = {
        (draft.data, draft.space, setting_of(draft.config, draft.variant.trainings))
        for draft in drafts
        if draft.method == RANDOM
    }
    added = []
    for variant in variants:
        for data in variant.data:
            for space in variant.spaces:
                number = variant.num_random
                seeds = variant.seeds if number is None else range(number)
                random = [_draft(variant, RANDOM, space, data, seed) for seed in seeds]
                key = data, space, setting_of(random[0].config, variant.trainings)
                if key not in covered:
                    covered.add(key)
                    added += random
    return added


def _trials(study: str, drafts: list[_Draft]) -> Iterator[Trial]:
    first_run: dict[str, str] = {}
    for draft in drafts:
        trainings = draft.variant.trainings
        for training in range(trainings):
            name = None if draft.given is None else draft.given.name
            found = (draft.method, draft.space if name is None else name)
            recipe = () if draft.recipe is None else (draft.recipe,)
            names = (draft.variant.name, *found, *recipe, draft.data, str(draft.seed))
            again = (f"training-{training}",) if training else ()
            trial = Trial(
                variant=draft.variant.name,
                method=draft.method,
                genotype_name=name,
                recipe=draft.recipe,
                space=draft.space,
                data=draft.config.data.name,
                stands_for=None if draft.variant.stand_in is None else draft.data,
                seed=draft.seed,
                training=training,
                trainings=trainings,
                config=_with_training(draft.config, training),
                run=joined_run_name(study, *names, *again),
                search_run="",
            )
            yield replace(trial, search_run=first_run.setdefault(_search_key(trial), trial.run))


def _search_key(trial: Trial) -> str:
    """Return the digest of what trials share: a search, or given cells."""
    if trial.genotype_name is not None:
        return digest([GIVEN, BY_NAME["derive"].config(trial.config)])
    return digest([BY_NAME["search"].config(trial.config), trial.config.data.root])


def _with_training(config: Config, training: int) -> Config:
    if not training:
        return config
    values = config.to_dict()
    values["retrain"]["seed"] = config.run.seed + TRAINING_STRIDE * training
    return build_config(values)
