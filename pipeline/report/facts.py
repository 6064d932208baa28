"""Facts of a bundle in words, each once: for its page, its model card and the terminal.

Read from stored data alone. What is not known is None, and not shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from d2nas.devices import CPU_PROVIDER, CUDA_PROVIDER

from .classes import cautions, summary
from .words import Marked, Row, Word, count, find, milliseconds, percent, size, tiny

PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "8-bit integers"}
"""Types that are computed in, in words."""

DeviceKind = Literal["CPU", "GPU", "unknown device"]


class Headline(NamedTuple):
    """The gate's verdict with its device: the headline, what it means, whether all is well."""

    headline: str
    meaning: str
    is_good: bool


class Stopping(NamedTuple):
    """What a training that holds images out recorded: its best epoch, from 0, and its extent."""

    best_epoch: int
    epochs: int
    train_images: int
    held_out_images: int


@dataclass(frozen=True)
class Facts:
    """Facts of version ``number`` of the bundle ``name``.

    ``report`` and ``preprocess`` are the bundle's JSON files, ``manifests`` the manifests of the
    versions behind it by stage. Any of them may miss keys.
    """

    name: str
    number: int
    report: Mapping[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, *path: str) -> Any:
        """Return a value of the report, or None."""
        return find(self.report, *path)

    def records(self, *path: str) -> list[Mapping[str, Any]]:
        """Return the mappings in a list of the report."""
        found = self.get(*path)
        return [one for one in found or [] if isinstance(one, Mapping)]

    def made(self, stage: str, *path: str) -> Any:
        """Return a value of a stage's manifest, or None."""
        return find(self.manifests, stage, *path)

    # The model

    @property
    def lead(self) -> str:
        """The model in one sentence."""
        origin = "." if self.origin is None else f"; its architecture was {self.origin}."
        return f"Image classifier for {count(self.num_classes)} classes{origin}"

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the logits."""
        return [str(name) for name in self.preprocess.get("class_names") or []]

    @property
    def num_classes(self) -> int | None:
        """Number of classes."""
        return len(self.class_names) or self.get("model", "num_classes")

    @property
    def origin(self) -> str | None:
        """Origin of the architecture."""
        found_by = self.get("found_by")
        if found_by is None:
            return None
        if str(found_by).startswith("given: "):
            return f"not searched here ({found_by})"
        if found_by == "random":
            return "drawn at random, without a look at any data"
        where = "the data it classifies" if self.get("found_on_this_data") else "other data"
        return f"found by a search ({found_by}) on {where}"

    @property
    def architecture(self) -> list[Row]:
        """The network and what it costs."""
        params, macs, convention = map(self.get, ("params", "macs", "macs_convention"))
        return [
            ("origin", self.origin),
            ("network", self._network),
            ("parameters", None if params is None else count(params)),
            (
                "multiply-adds",
                None if macs is None else count(macs) + (f" ({convention})" if convention else ""),
            ),
            ("model file", self.model_file),
        ]

    @property
    def _network(self) -> str | None:
        library = self.get("architecture")
        if library is not None:
            begins = ", from published weights" if self.get("retrain", "pretrained") else ""
            return f"{library}{begins}"
        cells, channels = self.get("retrain", "num_cells"), self.get("retrain", "init_channels")
        return None if cells is None else f"{cells} cells, {channels} channels at the start"

    @property
    def model_file(self) -> str | None:
        """The ONNX file."""
        writers: tuple[tuple[str, Callable[[Any], str]], ...] = (
            ("bytes", size),
            ("opset", "ONNX opset {}".format),
            ("num_nodes", "{:,} nodes".format),
            ("precision", lambda name: f"computes in {PRECISIONS.get(str(name), str(name))}"),
            ("input_type", "takes {}".format),
        )
        found = [(write, self.get("model", key)) for key, write in writers]
        return ", ".join(write(value) for write, value in found if value is not None) or None

    @property
    def input(self) -> Marked | None:
        """The model's input: its name, type and shape."""
        made = self.preprocess
        side, channels = made.get("image_size"), made.get("channels")
        if side is None or channels is None:
            return None
        layout = made.get("layout", "NCHW")
        axes = f"{side}, {side}, {channels}" if layout == "NHWC" else f"{channels}, {side}, {side}"
        return Marked(f"images: {made.get('dtype')} [batch, {axes}]", "code", f" ({layout})")

    @property
    def output(self) -> Marked | None:
        """The model's output."""
        if self.num_classes is None:
            return None
        shape = f"logits: float32 [batch, {self.num_classes}]"
        return Marked(shape, "code", ", one for each class in the order of labels.txt")

    # The verdict

    @property
    def passed(self) -> bool:
        """Whether the gate let the model through and was itself shown to reject faulty ones."""
        return self.get("parity", "passed") is True and self.get("self_test", "passed") is True

    @property
    def device_kind(self) -> DeviceKind:
        """The kind of device that the model was validated on."""
        return device_kind(self.get("device") or {})

    @property
    def device(self) -> str:
        """The device that the model was validated on."""
        device = self.get("device") or {}
        provider = device.get("provider", "provider not recorded")
        return f"{device.get('label', 'device not recorded')} ({provider})"

    @property
    def verdict(self) -> Headline:
        """The gate's verdict."""
        if not self.passed:
            refused = f"The gate did not pass this model on {self.device}. Do not deploy it."
            return Headline("Not validated", refused, is_good=False)
        scope = {
            "CPU": "Every figure of time below is a CPU figure; nothing was measured on a GPU.",
            "GPU": "Provider and place of every node were checked; nothing fell back to the CPU.",
        }.get(self.device_kind, "The device is not recorded: figures of time cannot be relied on.")
        chance = self.chance is not None
        headline = f"Validated on {self.device_kind}"
        return Headline(
            headline + (", but its accuracy may be chance" if chance else ""),
            f"{self.device}. {scope}",
            is_good=not chance and self.device_kind != "unknown device",
        )

    @property
    def caveats(self) -> list[Word]:
        """Cautions to know before relying on the figures."""
        found: list[Word] = []
        if self.chance:
            learned = (
                ". Validation shows that the file computes what the network computes, not that "
                "the network has learned."
            )
            found.append(Marked(f"Its accuracy of {self.chance}", "bad", learned))
        if self.get("latency_gate", "stable") is False:
            passed = ": it passed on a figure that was not shown to be steady."
            found.append(Marked("The gate's latency is UNSTABLE", rest=passed))
        if self.reduced:
            found.append(Marked("Reduced protocol", rest=f": {'; '.join(self.reduced)}."))
        unstable = [record for record in self.records("latency") if not is_stable(record)]
        if unstable:
            sizes = ", ".join(str(record.get("batch")) for record in unstable)
            again = f" at batch {sizes}: measure again."
            found.append(Marked("Latency is UNSTABLE", rest=again))
        found += cautions(self.report)
        found += [Marked("Data", rest=f": {line}.") for line in self.data_warnings]
        return [
            *found,
            f"Measured on one set of {self.images} and one device.",
            "It assigns one of its classes to every image, including images unlike its training "
            "data.",
        ]

    # The evidence

    @property
    def evaluation(self) -> str:
        """Name of the images that the accuracy is of."""
        return str(self.get("data", "evaluation") or "test")

    @property
    def images(self) -> str:
        """The images that the accuracy is of."""
        return "held-out training images" if self.evaluation == "held-out" else "test images"

    @property
    def accuracy(self) -> str | None:
        """The accuracies of the exported model and of the network."""
        found = self.get("accuracy") or {}
        told = [
            f"{percent(found[key])} ({runtime})"
            for key, runtime in (("onnx", "ONNX Runtime"), ("torch", "PyTorch"))
            if found.get(key) is not None
        ]
        images = f"on {count(found.get('test_images'))} {self.images}"
        return ", ".join([*told, images]) if told else None

    @property
    def chance(self) -> str | None:
        """Caution that the accuracy may be that of always answering one class, or None."""
        accuracy = self.get("accuracy") or {}
        if accuracy.get("near_chance") is not True:
            return None
        return (
            f"{percent(accuracy.get('onnx'))} may be chance: always answering the largest class "
            f"reaches {percent(accuracy.get('largest_class_share'))}"
        )

    @property
    def by_class(self) -> list[Row]:
        """The classes in a few lines; nothing of a report that has none."""
        return summary(self.report) if self.get("per_class") else []

    @property
    def conditions(self) -> list[Row]:
        """Conditions of the accuracy: images, weights, training, protocol."""
        accuracy = self.get("accuracy") or {}
        number, floor = accuracy.get("test_images"), accuracy.get("floor")
        required = floor and f"at least {100 * floor:g} % of PyTorch's accuracy was required"
        protocol: Word | None = None
        if self.reduced:
            protocol = Marked("reduced protocol", rest=f": {'; '.join(self.reduced)}")
        elif self.made("retrain", "config", "data") is not None:
            protocol = f"all training images that are not test images{self._but_held_out}"
        return [
            ("images", f"{self.images} that neither search nor training read"),
            ("weights", f"{self._weights}; none was chosen by these images"),
            ("training", self._training),
            ("beside DARTS's recipe", ", ".join(self._options) or None),
            ("teacher", self._teacher),
            ("protocol", protocol),
            ("floor", required or None),
            ("resolution", f"one image is {100 / number:.2g} points" if number else None),
        ]

    @property
    def _weights(self) -> str:
        """Which weights of the training are deployed."""
        ema, stopping = self.get("retrain", "ema"), self.stopping
        last = "of the last epoch"
        if stopping is not None:
            last = (
                f"of epoch {stopping.best_epoch + 1:,} of {stopping.epochs:,}, the best by the "
                f"loss on {stopping.held_out_images:,} training images that were held out"
            )
        return last if ema is None else f"a moving average (of {ema:g}) up to that {last}"

    @property
    def stopping(self) -> Stopping | None:
        """The epoch that is deployed and the images it was chosen by; None where it is the last."""
        found = [self.made("retrain", "facts", "stopping", name) for name in Stopping._fields]
        return Stopping(*found) if all(type(one) is int for one in found) else None

    @property
    def _but_held_out(self) -> str:
        if self.stopping is None:
            return ""
        return f" but {self.stopping.held_out_images:,}, held out to choose the epoch"

    @property
    def trained(self) -> tuple[int | None, int | None]:
        """Number of epochs of the final training as it went, and of its images."""
        if self.stopping is None:
            return self.get("retrain", "epochs"), self.get("data", "train")
        return self.stopping.epochs, self.stopping.train_images

    @property
    def _options(self) -> list[str]:
        """Settings of the training that DARTS's recipe does not have."""
        given = self.get("retrain")
        found = given if isinstance(given, Mapping) else {}
        told = [
            f"{key} {found[key]:g}"
            for key in ("label_smoothing", "erasing", "mixup", "cutmix", "patience")
            if found.get(key)
        ]
        plain = {"optimizer": "sgd", "augment": "none", "class_weights": "none", "accumulate": 1}
        return [
            *(f"{key} {found[key]}" for key, none in plain.items() if found.get(key, none) != none),
            *told,
        ]

    @property
    def _teacher(self) -> Word | None:
        """The model whose answers were learned besides the labels."""
        found = self.made("retrain", "facts", "teacher")
        if not isinstance(found, Mapping):
            return None
        told = (
            f": {percent(found.get('accuracy'))} of {count(found.get('images'))} training images; "
            f"weight {found.get('weight')}, temperature {found.get('temperature')}; takes "
            f"{found.get('input')}, gives {found.get('answers')}; classes {found.get('classes')}; "
            f"SHA-256 {str(found.get('digest'))[:12]}"
        )
        return Marked(str(found.get("name")), "name", told)

    @property
    def _training(self) -> str | None:
        epochs, images = self.trained
        if epochs is None or images is None:
            return None
        where = {"cpu": " on a CPU", "cuda": " on a GPU"}.get(str(self.get("trained_on")), "")
        return f"{epochs:,} epochs on {images:,} training images{where}"

    @property
    def reduced(self) -> list[str]:
        """Reasons why the accuracy is not that of the whole data set's protocol."""
        reasons = []
        kept = self.made("retrain", "config", "data", "train_images")
        if kept is not None:
            reasons.append(f"only {kept:,} training images were kept")
        if self.evaluation == "held-out":
            reasons.append("accuracy is on held-out training images, the test images are unread")
        return reasons

    @property
    def identity(self) -> str | None:
        """What the model was compared with, or why with nothing, where not with its genotype."""
        graph = self.get("identity", "graph_sha256")
        if graph is not None:
            return f"the fixed graph of {self.get('architecture')}, no genotype's: {graph}"
        reason = self.get("identity", "reason")
        return None if reason is None else f"not compared with the genotype: {reason}"

    @property
    def parity(self) -> str | None:
        """Distance of the exported model to the network."""
        parity = self.get("parity")
        if not isinstance(parity, Mapping):
            return None
        words = (
            ("relative L2", "relative_l2", tiny),
            ("largest difference", "max_abs", tiny),
            ("top-1 agreement", "top1_agreement", percent),
        )
        told = [f"{name} {write(parity.get(key))}" for name, key, write in words]
        return f"{parity.get('verdict')}: {', '.join(told)}"

    @property
    def quantisation(self) -> list[Row]:
        """What was shown of a model in 8-bit integers; nothing of another."""
        found = self.get("quantisation")
        if not isinstance(found, Mapping):
            return []
        images, bits = (self.get("model", "calibration", key) for key in ("images", "weight_bits"))
        distance = find(found, "float32", "relative_l2")
        times = find(found, "latency") or {}
        own, float32 = times.get("int8_ms"), times.get("float32_ms")
        ratio = f"{own / float32:.2f} of it" if own and float32 else None
        return [
            (
                "weights",
                f"{count(found.get('weights'))} tensors, each within half a quantisation step of "
                f"the float32 model's, whose logits are {tiny(distance)} from PyTorch's (relative "
                "L2)",
            ),
            (
                "features",
                None
                if images is None
                else f"ranges from {count(images)} training images; weights of {bits} bits",
            ),
            (
                "latency beside float32's",
                ratio
                and f"{ratio}: {milliseconds(own)} ms against {milliseconds(float32)} ms in turns, "
                f"batch {times.get('batch')}, {times.get('device')}",
            ),
        ]

    @property
    def self_test(self) -> tuple[Word, list[str]] | None:
        """Verdict of the gate on faulty copies of the model, and which ones."""
        found = self.get("self_test")
        if not isinstance(found, Mapping):
            return None
        rejected, accepted = found.get("rejected") or [], found.get("accepted") or []
        if accepted:
            told = f"The gate let {len(accepted)} faulty copies through:"
            return Marked(told, "bad"), [str(one) for one in accepted]
        told = (
            f"The same gate was shown {len(rejected)} deliberately faulty copies of the model and "
            "rejected every one:"
        )
        return told, [str(one) for one in rejected]

    @property
    def gate(self) -> str | None:
        """Limit of the gate on latency and the figure measured; None without a gate."""
        gate = self.get("latency_gate")
        if not isinstance(gate, Mapping):
            return None
        what = f"p99 of batch {gate.get('batch')}"
        what += ", from host to host" if gate.get("transfers") == "host" else ""
        what += f", mode {gate['mode']}" if gate.get("mode") else ""
        told = f"{what}, at most {milliseconds(gate.get('max_p99_ms'))} ms"
        if gate.get("p99_ms") is not None:
            told += f": {milliseconds(gate['p99_ms'])} ms on {device_kind(gate)}"
        return told + (", UNSTABLE" if gate.get("stable") is False else "")

    # Its origin

    @property
    def data(self) -> list[Row]:
        """The data set, and how many images served for what."""
        data = self.get("data")
        if not isinstance(data, Mapping):
            return []
        side, line, halves = data.get("image_size"), find(data, "pictures", "line"), None
        colours = {1: "grey", 3: "colour"}
        if self._searched_here and data.get("weight_half") is not None:
            halves = (
                f"{count(data['weight_half'])} for the weights, {count(data.get('arch_half'))} "
                f"for the architecture; the final training sees all{self._but_held_out}"
            )
        channels = data.get("channels") or 0
        return [
            ("data set", Marked(str(data["name"]), "name") if "name" in data else None),
            (
                "images",
                None
                if side is None
                else f"{side} x {side} pixels, {colours.get(channels, f'{channels} channels')}",
            ),
            ("pictures", None if line is None else Marked(str(line), "name")),
            ("training", _images(data.get("train"))),
            ("in the search", halves),
            (self.evaluation, _images(data.get("test"))),
            ("reduced", "; ".join(self.reduced) or None),
            ("digest", Marked(str(data["digest"]), "digest") if "digest" in data else None),
            ("warnings", [Marked(line, "name") for line in self.data_warnings] or "none"),
        ]

    @property
    def images_used(self) -> str | None:
        """The data set and its images in a line."""
        data = self.get("data")
        if not isinstance(data, Mapping):
            return None
        train, test = count(data.get("train")), count(data.get("test"))
        return f"{data.get('name')}: {train} training images, {test} {self.images}"

    @property
    def data_warnings(self) -> list[str]:
        """Warnings on the images."""
        found = self.get("data", "warnings")
        return [str(line) for line in found or []]

    @property
    def _searched_here(self) -> bool:
        """Whether a search read this data set's training images: a random draw reads none."""
        return bool(self.get("found_on_this_data")) and self.get("found_by") != "random"

    @property
    def lineage(self) -> list[tuple[str, str, Marked]]:
        """Each stage, how it made its version, and the version's id."""
        lineage = self.get("lineage")
        if not isinstance(lineage, Mapping):
            return []
        others = sorted(stage for stage in lineage if stage not in _MADE)
        return [
            (
                stage,
                _MADE[stage](self) if stage in _MADE else "",
                Marked(str(lineage[stage]), "digest"),
            )
            for stage in [*(stage for stage in _MADE if stage in lineage), *others]
        ]

    @property
    def provenance(self) -> list[Row]:
        """The genotype's digest, and the libraries that the last stage ran with."""
        genotype, made_with = self.get("genotype_digest"), None
        libraries = self.made(self.lineage[-1][0], "versions") if self.lineage else None
        if isinstance(libraries, Mapping):
            made_with = ", ".join(f"{name} {one}" for name, one in sorted(libraries.items()))
        return [
            ("genotype", Marked(str(genotype), "digest") if genotype else None),
            ("made with", made_with),
        ]


def device_kind(record: Mapping[str, Any]) -> DeviceKind:
    """Say what a record was measured on. A GPU only where nothing in the record speaks against."""
    kind, provider = record.get("kind"), record.get("provider")
    says = {
        {"cpu": "CPU", "cuda": "GPU"}.get(str(kind)) if kind is not None else None,
        {CPU_PROVIDER: "CPU", CUDA_PROVIDER: "GPU"}.get(str(provider))
        if provider is not None
        else None,
    } - {None}
    if says == {"CPU"}:
        return "CPU"
    return "GPU" if says == {"GPU"} else "unknown device"


def is_stable(record: Mapping[str, Any]) -> bool:
    """Whether a measurement was shown to be steady."""
    return record.get("stable") is True


def _images(number: int | None) -> str | None:
    return None if number is None else f"{count(number)} images"


def _searched(facts: Facts) -> str:
    config, found_by = facts.made("search", "config", "search"), facts.get("found_by")
    if not isinstance(config, Mapping):
        return f"by {found_by}"
    if found_by == "random":
        told = f"drawn at random from {config.get('space')}, nothing was trained"
    else:
        told = (
            f"by {found_by} in {config.get('space')}: {config.get('num_cells')} cells x "
            f"{config.get('init_channels')} channels, {config.get('epochs')} epochs"
        )
    return told + _seed(facts, "search")


def _derived(facts: Facts) -> str:
    found_by = str(facts.get("found_by") or "")
    if found_by.startswith("given: "):
        what = "genotype" if facts.get("architecture") is None else "network"
        return f"no search; the {what} was {found_by}"
    candidates = facts.made("derive", "facts", "candidates")
    if facts.made("derive") is None:
        return ""
    if candidates is not None and candidates > 1:
        trainings = facts.made("derive", "facts", "trainings")
        after = "" if trainings is None else f" after {trainings} short trainings"
        return f"the best of {candidates} candidate cells{after} on the architecture half"
    if found_by == "random":
        return "the genotype that was drawn"
    return "the genotype that the search's logits say"


def _retrained(facts: Facts) -> str:
    precision = facts.made("retrain", "facts", "precision")
    epochs, images = facts.trained
    begins = "from published weights" if facts.get("retrain", "pretrained") else "from scratch"
    told = f"{begins}, {epochs} epochs of {count(images)} images"
    told += f" on {facts.get('trained_on')}" if facts.get("trained_on") else ""
    told += f" in {PRECISIONS.get(precision, precision)}" if precision else ""
    return told + _seed(facts, "retrain")


def _seed(facts: Facts, stage: str) -> str:
    seed = facts.made(stage, "config", stage, "seed")
    seed = facts.made(stage, "seed") if seed is None else seed
    return "" if seed is None else f", seed {seed}"


_MADE: Mapping[str, Callable[[Facts], str]] = {
    "search": _searched,
    "derive": _derived,
    "retrain": _retrained,
    "export": lambda facts: facts.model_file or "to ONNX",
    "validate": lambda facts: f"passed on {facts.device_kind}: {facts.get('device', 'label')}",
}
"""Words on how each stage made its version, in the order of a run."""
