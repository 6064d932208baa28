"""Statistics of a study: means, spread, percentiles among random cells, rank agreement.

Rows are those of ``study_run.StudyRun.rows``: accuracies are fractions, here errors are percent.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from d2nas.config import other_method

from .grid import GIVEN, RANDOM, Copied, Study

MEASURES = ("accuracy", "calibrated_loss")
MIN_RANKED = 5
"""Fewest networks for which a rank correlation is shown."""
MIN_RANDOM = 10
"""Fewest random cells among which a percentile is shown."""
DAY = 86_400
MACS_NOTE = (
    "MACs: multiply-adds of convolutions and linear layers for one image, without batch norm; "
    "papers call them FLOPs and count differently"
)
BEST_NOTE = (
    "best of n: chosen by the images that its error is of, so the error is too low by the choice"
)

COLUMNS = (
    "data",
    "variant",
    "space",
    "method",
    "n",
    "failed",
    "error %",
    "loss",
    "num",
    "params",
    "MACs",
    "percentile",
    "passes",
    "search s",
    "GPU-days",
    "device",
)
COPIED_COLUMNS = (
    "data",
    "space",
    "method",
    "error %",
    "num",
    "params",
    "FLOPs",
    "GPU-days",
    "source",
)

_GROUP = ("variant", "data", "stands_for", "space", "method", "genotype_name", "recipe")
_ORDERED = 4
"""So many of them are in the order in which they come, before what is ordered by rows."""
_AVERAGED = ("parameterless_normal", "params", "macs")

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one line per variant, data set, space and method, in the order of the rows; given
    genotypes have one each.

    ``error`` and ``error_sd`` are mean and sample standard deviation in percent (None without or
    with one value); ``percentile`` says how many percent of the ``random`` cells with the same
    data and retraining have a lower accuracy than the mean (ties count half; None for the random
    cells themselves); ``loss``, ``loss_sd`` and ``loss_percentile`` say the same of the calibrated
    loss, where lower is better. ``best`` is the network of the lowest error among several of a
    search, ``gpu_days`` the mean time of searches that all ran on GPUs. A network counts once, with
    the mean of its trainings, whose pooled standard deviation is ``training_sd`` (None with one
    training each). If one of them failed it counts in ``failed`` and nowhere else.
    """
    found = networks(rows)
    return [_summary(key, group, found) for key, group in _grouped(found).items()]


def networks(rows: Sequence[Row]) -> list[Row]:
    """Return one row per network: the first training's, with the means of all of them.

    ``accuracies`` holds them all; ``error`` is the first training's that has one.
    """
    trained: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (*_group_of(row), row["seed"])
        trained.setdefault(key, []).append(row)
    return [_network(group) for group in trained.values()]


def _network(trainings: list[Row]) -> Row:
    error = next((row["error"] for row in trainings if row["error"] is not None), None)
    accuracies = [row["accuracy"] for row in trainings if row["accuracy"] is not None]
    whole = len(accuracies) == len(trainings)
    return {
        **trainings[0],
        "accuracies": accuracies,
        "accuracy": statistics.fmean(accuracies) if whole else None,
        "calibrated_loss": _mean(row["calibrated_loss"] for row in trainings),
        "error": error,
    }


def percentile(value: float, among: Sequence[float]) -> float | None:
    """Return how many percent of ``among`` are below ``value``; ties count half."""
    if not among:
        return None
    below = sum(other < value for other in among)
    equal = sum(other == value for other in among)
    return 100 * (below + equal / 2) / len(among)


def rank_correlations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return Spearman's rank correlations, for each data set, pair of variants and measure.

    The measures are ``accuracy`` and ``calibrated_loss`` (see ``d2nas.measure.calibration``).

    Over networks of the same method, space and seed that trained the same genotype, each with the
    mean of its trainings; pairs with fewer than ``MIN_RANKED`` are left out. None where all
    values of a variant are equal.
    """
    found = []
    rows = networks(rows)
    for data, measure in itertools.product(dict.fromkeys(row["data"] for row in rows), MEASURES):
        by_variant = {
            variant: _ranked(
                [r for r in rows if (r["data"], r["variant"]) == (data, variant)], measure
            )
            for variant in dict.fromkeys(row["variant"] for row in rows)
        }
        for one, other in itertools.combinations(by_variant, 2):
            common = [key for key in by_variant[one] if key in by_variant[other]]
            if len(common) >= MIN_RANKED:
                pairs = [(by_variant[one][key], by_variant[other][key]) for key in common]
                found.append(
                    {
                        "data": data,
                        "variants": (one, other),
                        "measure": measure,
                        "n": len(pairs),
                        "spearman": _spearman(pairs),
                    }
                )
    return found


def _ranked(rows: Sequence[Row], measure: str) -> dict[tuple[Any, ...], float]:
    return {
        (row["method"], row["space"], row["seed"], row["genotype_digest"]): row[measure]
        for row in rows
        if row[measure] is not None
    }


def table_rows(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return summaries as cells for ``COLUMNS``, the best networks below their means."""
    return [cells for line in summaries for cells in _cells(line)]


def _cells(line: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    names = data_label(line), line["variant"], line["space"]
    yield (
        *names,
        method_label(line),
        str(line["n"]),
        str(line["failed"]),
        _with_spread(line["error"], line["error_sd"]),
        _with_spread(line["loss"], line["loss_sd"], ".4f"),
        _with_spread(line["parameterless_normal"], line["parameterless_normal_sd"], ".1f"),
        _with_spread(line["params"], line["params_sd"], ",.0f"),
        _with_spread(line["macs"], line["macs_sd"], ",.0f"),
        _of_random(line),
        _number(line["passes"], ",.0f"),
        _number(line["search_seconds"], ",.0f"),
        _number(line["gpu_days"], ".2f"),
        line["device"] or "",
    )
    best = line["best"]
    if best is not None:
        yield (
            *names,
            f"{method_label(line)}, best of {line['n']}",
            *("1", "0", _number(best["error"], ".2f"), _number(best["loss"], ".4f")),
            *(_number(best[name], ",.0f") for name in _AVERAGED),
            *("", "", "", "", line["device"] or ""),
        )


def copied_rows(copied: Iterable[Copied], data: str) -> list[tuple[str, ...]]:
    """Return published rows as cells for ``COPIED_COLUMNS``; ``data``: the study's data set."""
    return [
        (
            *(row.data or data, row.space, row.method, row.error, row.num),
            *(row.params, row.macs, row.gpu_days, row.source),
        )
        for row in copied
    ]


def reduced_line(study: Study) -> str:
    """Say that a study is a reduced protocol, and what it is not."""
    return (
        f"REDUCED PROTOCOL (--scale {study.scale}): the same rows by other settings, on "
        f"{study.trials[0].data} in place of the study's data sets. It shows that every row runs; "
        "no figure stands for one of the full study, and none says which method is better"
    )


def data_label(row: Row) -> str:
    """Return the data set of a row or summary, with the one in whose place it stands."""
    other = row.get("stands_for")
    return str(row["data"]) if other is None else f"{row['data']} for {other}"


def method_label(row: Row) -> str:
    """Return the method of a row or summary, with its recipe or the name of a given genotype."""
    name, recipe = row.get("genotype_name"), row.get("recipe")
    if recipe is not None:
        return f"{row['method']}, {'as written' if recipe == 'paper' else recipe}"
    return str(row["method"]) if name is None else f"{row['method']} {name}"


def settings_lines(rows: Sequence[Row]) -> list[str]:
    """Say how the rows' networks were trained and measured, and how each method searched."""
    searches: dict[str, list[str]] = {}
    for row in rows:
        if row["method"] in (RANDOM, GIVEN):
            continue
        methods = searches.setdefault(_search_line(row), [])
        if method_label(row) not in methods:
            methods.append(method_label(row))
    lines = [f"{', '.join(methods)}: {line}" for line, methods in searches.items()]
    return [_training_line(rows[0]), *lines]


def _search_line(row: Row) -> str:
    search = row["settings"]["search"]
    return (
        f"searched {search['num_cells']} cells x {search['init_channels']} channels, "
        f"{search['epochs']} epochs ({search['warmup_epochs']} of warm-up), "
        f"batch {search['batch_size']}, {search['weight_optimizer']} lr {search['weight_lr']:g}, "
        f"arch lr {search['arch_lr']:g}{_of_draws(row)}"
    )


def _of_draws(row: Row) -> str:
    """Say by which estimator and how many draws a method that has several learned."""
    search = row["settings"]["search"]
    method = other_method(row["method"])
    if method is not None and "draws" in method.unread:
        return ""
    return f", {search['estimator']} of {search['draws']} draws"


def _training_line(row: Row) -> str:
    retrain = row["settings"]["retrain"]
    train = row["settings"]["train_images"]
    measured = f"{row['images']:,} " if row["images"] else ""
    what = "test images" if row["evaluation"] == "test" else "held-out images, not the test images"
    trainings = row["settings"]["trainings"]
    times = f", mean of {trainings} trainings each" if trainings > 1 else ""
    return (
        f"trained {retrain['num_cells']} cells x {retrain['init_channels']} channels{times}, "
        f"{retrain['epochs']} epochs, batch {retrain['batch_size']}, "
        f"{'all' if train is None else f'{train:,}'} training images; "
        f"error on {measured}{what}"
    )


def correlation_line(found: Mapping[str, Any]) -> str:
    """Say a rank correlation in one line."""
    one, other = found["variants"]
    value = "undefined" if found["spearman"] is None else f"{found['spearman']:.2f}"
    return (
        f"{found['data']}: rank correlation (Spearman) of {one} and {other} by "
        f"{found['measure'].replace('_', ' ')}: {value} "
        f"over {found['n']} genotypes trained in both"
    )


def _group_of(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _GROUP)


def _grouped(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = _group_of(row)
        groups.setdefault(key, []).append(row)
    # All methods of a space together, whatever order they ran in.
    places = [list(dict.fromkeys(key[axis] for key in groups)) for axis in range(_ORDERED)]
    return dict(
        sorted(
            groups.items(),
            key=lambda item: [places[axis].index(item[0][axis]) for axis in range(_ORDERED)],
        )
    )


def _summary(key: tuple[Any, ...], group: list[Row], rows: Sequence[Row]) -> dict[str, Any]:
    names = dict(zip(_GROUP, key, strict=True))
    method = names["method"]
    done = [row for row in group if row["error"] is None]
    accuracies = [row["accuracy"] for row in done]
    errors = [100 * (1 - accuracy) for accuracy in accuracies]
    # A random cell counts once, in however many variants it was trained alike.
    random = {
        (row["seed"], row["genotype_digest"]): row
        for row in rows
        if row["method"] == RANDOM
        and row["error"] is None
        and all(row.get(name) == names[name] for name in ("data", "stands_for", "space"))
        and row["setting"] == group[0]["setting"]
    }.values()
    compared = method != RANDOM and accuracies
    return {
        **names,
        "n": len(done),
        "failed": len(group) - len(done),
        "error": statistics.fmean(errors) if errors else None,
        "error_sd": statistics.stdev(errors) if len(errors) > 1 else None,
        "training_sd": _training_sd([row["accuracies"] for row in done]),
        "percentile": percentile(statistics.fmean(accuracies), [row["accuracy"] for row in random])
        if compared
        else None,
        **_loss_summary([row["calibrated_loss"] for row in done], random if compared else ()),
        "num_random": len(random),
        "best": _best(done) if method not in (RANDOM, GIVEN) and len(done) > 1 else None,
        **{
            name: _mean(row[name] for row in done)
            for name in (*_AVERAGED, "passes", "search_seconds")
        },
        **{f"{name}_sd": _spread(row[name] for row in done) for name in _AVERAGED},
        "gpu_days": _gpu_days(done),
        "device": ", ".join(sorted({row["device"] for row in done if row["device"]})),
    }


def _best(rows: list[Row]) -> dict[str, Any]:
    best = max(rows, key=lambda row: row["accuracy"])
    return {
        "seed": best["seed"],
        "error": 100 * (1 - best["accuracy"]),
        "loss": best["calibrated_loss"],
        **{name: best[name] for name in _AVERAGED},
    }


def _gpu_days(rows: list[Row]) -> float | None:
    """Return the mean time of searches in days, where all ran on a GPU and trained something."""
    on_gpu = all((row["device"] or "").startswith("cuda") and row["passes"] for row in rows)
    seconds = _mean(row["search_seconds"] for row in rows)
    return seconds / DAY if on_gpu and seconds is not None else None


def _loss_summary(losses: list[float | None], random: Iterable[Row]) -> dict[str, float | None]:
    """Return the loss's mean and spread, and how many percent of the random cells have a higher."""
    known = [loss for loss in losses if loss is not None]
    if not known or len(known) < len(losses):
        return {"loss": None, "loss_sd": None, "loss_percentile": None}
    mean = statistics.fmean(known)
    others = [row["calibrated_loss"] for row in random]
    comparable = [-loss for loss in others if loss is not None]
    return {
        "loss": mean,
        "loss_sd": statistics.stdev(known) if len(known) > 1 else None,
        "loss_percentile": percentile(-mean, comparable),
    }


def _training_sd(accuracies: list[list[float]]) -> float | None:
    """Return how far trainings of one network lie apart: pooled standard deviation in percent."""
    several = [values for values in accuracies if len(values) > 1]
    if not several:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return 100 * math.sqrt(squares / sum(len(values) - 1 for values in several))


def _mean(values: Any) -> float | None:
    known = list(values)
    return None if not known or None in known else statistics.fmean(known)


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _spearman(pairs: list[tuple[float, float]]) -> float | None:
    from scipy.stats import spearmanr

    ones, others = zip(*pairs, strict=True)
    if len(set(ones)) == 1 or len(set(others)) == 1:
        return None
    return float(spearmanr(ones, others).statistic)


def _with_spread(mean: float | None, spread: float | None, form: str = ".2f") -> str:
    shown = _number(mean, form)
    return shown if mean is None or spread is None else f"{shown} +- {spread:{form}}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _of_random(line: Mapping[str, Any]) -> str:
    if line["percentile"] is None:
        return ""
    if line["num_random"] < MIN_RANDOM:
        return f"too few ({line['num_random']} random)"
    by_loss = line["loss_percentile"]
    loss = "" if by_loss is None else f" (by loss {by_loss:.0f})"
    return f"{line['percentile']:.0f}{loss} of {line['num_random']} random"
