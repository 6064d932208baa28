"""The files of ``pipeline/serving/deploy/``, read strictly, and what is wrong with them.

``problems`` looks at texts, so that controls can change one.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import kubernetes_validate
import yaml
from children import PROJECT
from dockerfile_parse import DockerfileParser
from jsonschema import ValidationError as SchemaError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, ValidationError

from d2nas._version import __version__
from pipeline.serving.limits import MIB, Limits
from pipeline.serving.service import MAX_PIXELS

PLACE = "pipeline/serving/deploy"
REQUIREMENTS = "pipeline/serving/requirements.txt"
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
KUBERNETES = ("1.30", "1.33")
"""The oldest one that the files need, and the newest one that every allowed version of
``kubernetes-validate`` knows."""
TRITON_RUNTIMES = {"26.07-py3": "1.27.0"}
"""ONNX Runtime in Triton's images, by its documentation (introduction/compatibility)."""
LEAVING_SECONDS = 10
"""For what follows on the answers: the end of a computation, of the process."""
BASE_BYTES = 256 * MIB
"""Interpreter, libraries and a small model with its largest batch; the toy's takes half."""


def read_all() -> dict[str, str]:
    """Every file by its name, with ``.dockerignore`` and the requirements."""
    files = {path.name: path.read_text() for path in (PROJECT / PLACE).iterdir()}
    others = (".dockerignore", REQUIREMENTS, "pyproject.toml")
    return files | {name: (PROJECT / name).read_text() for name in others}


# Dockerfiles


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The words of an exec form; raises ``ValueError`` where it is another."""
        found = json.loads(self.value)
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise ValueError(f"{self.name} is no list of words")
        return found


class Image:
    """A Dockerfile: its stages, of which the last one is the image."""

    def __init__(self, text: str) -> None:
        parser = DockerfileParser(fileobj=BytesIO(text.encode()))
        steps = [
            Step(entry["instruction"], entry["value"])
            for entry in parser.structure
            if entry["instruction"] != "COMMENT"
        ]
        starts = [at for at, step in enumerate(steps) if step.name == "FROM"]
        ends = [*starts[1:], len(steps)]
        self.stages = [steps[start:end] for start, end in zip(starts, ends, strict=True)]
        arguments = dict(step.value.split("=", 1) for step in steps[: starts[0]])
        self.bases = [
            re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], stage[0].value.split()[0])
            for stage in self.stages
        ]

    def last(self, name: str) -> Step:
        """The instruction that holds in the image."""
        return [step for step in self.stages[-1] if step.name == name][-1]

    @property
    def health_check(self) -> list[str]:
        """The words of the health check's command."""
        return Step("HEALTHCHECK", self.last("HEALTHCHECK").value.partition("CMD")[2]).words

    @property
    def health_times(self) -> dict[str, str]:
        """The health check's options."""
        options = self.last("HEALTHCHECK").value.partition("CMD")[0].split()
        return dict(option.removeprefix("--").split("=") for option in options)

    @property
    def command(self) -> list[str]:
        """What runs in the image, with the default arguments."""
        return [*self.last("ENTRYPOINT").words, *self.last("CMD").words]

    def option(self, name: str) -> str:
        """An option of the server."""
        return self.command[self.command.index(name) + 1]

    @property
    def copied(self) -> list[tuple[list[str], str]]:
        """What is copied out of the context, and whither."""
        found = [step.value.split() for stage in self.stages for step in stage]
        names = [step.name for stage in self.stages for step in stage]
        return [
            (words[:-1], words[-1])
            for name, words in zip(names, found, strict=True)
            if name in ("COPY", "ADD") and not words[0].startswith("--from=")
        ]

    @property
    def runs(self) -> list[str]:
        """The commands of all stages, one by one."""
        return [
            " ".join(part.split())
            for stage in self.stages
            for step in stage
            if step.name == "RUN"
            for part in step.value.split("&&")
        ]

    @property
    def pip_commands(self) -> list[str]:
        """The commands that install Python packages."""
        return [command for command in self.runs if command.startswith("python3 -m pip ")]


def requirements_of(image: Image, requirements: str, folder: Path) -> list[str]:
    """The requirements that are installed in the image: its own command makes them of ours."""
    (folder / "requirements.txt").write_text(requirements)
    for command in image.runs:
        if command.startswith("sed "):
            subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    words = shlex.split(image.pip_commands[0])
    return lines_of((folder / words[words.index("-r") + 1]).read_text())


def lines_of(text: str) -> list[str]:
    """The lines of a list, without comments."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _image_problems(name: str, files: Mapping[str, str]) -> Iterator[str]:
    image = Image(files[name])
    for base in image.bases:
        if not re.fullmatch(r"[a-z0-9./]+:\d+\.\d+[\w.-]*", base):
            yield f"base {base} has no version"
    user = image.last("USER").value
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"user {user} is root, or no number"
    for step in (image.last("ENTRYPOINT"), image.last("CMD")):
        try:
            _ = step.words
        except ValueError:
            yield f"{step.name} is run by a shell, which passes no signal on"
            return
    if image.option("--host") != "0.0.0.0":
        yield "nobody outside of the container is listened to"
    for sources, _ in image.copied:
        yield from (f"{one} is not there" for one in sources if not (PROJECT / one).exists())
    allowed = {one.split("/")[0] for sources, _ in image.copied for one in sources}
    first, *others = lines_of(files[".dockerignore"])
    if first != "*" or {line[1:] for line in others if line[0] == "!"} != allowed:
        yield f".dockerignore does not let just {sorted(allowed)} through"
    first, last = image.pip_commands
    if not first.endswith(" -c constraints.txt") or not last.endswith(" --no-deps ."):
        yield "other packages than those of the constraints are installed"


def _cuda_problems(files: Mapping[str, str]) -> Iterator[str]:
    image = Image(files["Dockerfile.cuda"])
    if image.option("--device") != "cuda":
        yield "where no GPU answers the CPU would"
    if any("-cudnn-runtime-" not in base for base in image.bases):
        yield "the base has no cuDNN"


def _version_problems(files: Mapping[str, str]) -> Iterator[str]:
    pins = {}
    for line in lines_of(files["constraints.txt"]):
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9.]+)", line)
        if found is None:
            yield f"constraint {line} is no one version"
        else:
            pins[found[1].lower()] = Version(found[2])
    for line in lines_of(files[REQUIREMENTS]):
        wanted = Requirement(line)
        if pins.get(wanted.name) not in wanted.specifier:
            yield f"{wanted} is not met by {pins.get(wanted.name)}"
    if pins.get("onnxruntime") != pins.get("onnxruntime-gpu"):
        yield "the images differ in ONNX Runtime"


# YAML


class _Loader(yaml.SafeLoader):
    """A reader that refuses a key which stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key stands twice among {keys}")
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """The documents of a YAML file. Raises ``yaml.YAMLError``."""
    return [*yaml.load_all(text, _Loader)]


class Strict(BaseModel):
    """A form without keys that are not its own."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Strict):
    context: str
    dockerfile: str


class Mount(Strict):
    type: Literal["bind", "volume"]
    source: str
    target: str
    read_only: bool = False
    bind: dict[Literal["create_host_path"], bool] | None = None


class HealthCheck(Strict):
    test: list[str]
    interval: str
    timeout: str
    start_period: str
    retries: int


class Condition(Strict):
    condition: Literal["service_healthy"]


class ComposeService(Strict):
    image: str
    volumes: list[Mount]
    ports: list[str]
    restart: Literal["unless-stopped"]
    read_only: Literal[True]
    cap_drop: list[Literal["ALL"]]
    security_opt: list[Literal["no-new-privileges:true"]]
    mem_limit: str
    build: Build | None = None
    healthcheck: HealthCheck | None = None
    stop_grace_period: str = "10s"
    user: str = ""
    cpus: int | float | None = None
    pids_limit: int | None = None
    profiles: list[str] | None = None
    depends_on: dict[str, Condition] | None = None


class Compose(Strict):
    """As much of the Compose specification as is used."""

    name: str
    services: dict[Literal["server", "prometheus"], ComposeService]
    volumes: dict[str, None]


class ModelFormat(Strict):
    name: Literal["triton"]


class KServeModel(Strict):
    modelFormat: ModelFormat  # noqa: N815
    runtime: Literal["kserve-tritonserver"]
    runtimeVersion: str  # noqa: N815
    protocolVersion: Literal["v2"]  # noqa: N815
    storageUri: str  # noqa: N815


class ModelPredictor(Strict):
    model: KServeModel


class KServeMetadata(Strict):
    name: str
    annotations: dict[Literal["serving.kserve.io/deploymentMode"], Literal["Standard"]] = {}


class KServeSpec(Strict):
    predictor: ModelPredictor | dict[str, Any]


class InferenceService(Strict):
    """As much of KServe's resource as is used; a predictor of one's own is a pod."""

    apiVersion: Literal["serving.kserve.io/v1beta1"]  # noqa: N815
    kind: Literal["InferenceService"]
    metadata: KServeMetadata
    spec: KServeSpec


def compose_of(files: Mapping[str, str]) -> Compose:
    """The Compose file. Raises ``ValidationError``."""
    (document,) = documents(files["compose.yaml"])
    return Compose.model_validate(document)


def pods_of(files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The pods of our server, by the file: of the Deployment, and under KServe."""
    deployment, _ = documents(files["kubernetes.yaml"])
    (service,) = documents(files["kserve-server.yaml"])
    return {
        "kubernetes.yaml": deployment["spec"]["template"]["spec"],
        "kserve-server.yaml": service["spec"]["predictor"],
    }


def triton_of(files: Mapping[str, str]) -> KServeModel:
    """What KServe's Triton is told. Raises ``ValidationError``."""
    (document,) = documents(files["kserve-triton.yaml"])
    predictor = ModelPredictor.model_validate(document["spec"]["predictor"])
    InferenceService.model_validate(document)
    return predictor.model


def _form_problems(files: Mapping[str, str]) -> Iterator[str]:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    objects = [
        *documents(files["kubernetes.yaml"]),
        pod | {"spec": pods_of(files)["kserve-server.yaml"]},
    ]
    for version in KUBERNETES:
        for one in objects:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except SchemaError as error:
                yield f"{one['kind']}: {error.message}"
    try:
        compose_of(files)
        triton_of(files)
        (service,) = documents(files["kserve-server.yaml"])
        InferenceService.model_validate(service)
    except ValidationError as error:
        yield from (f"{one['loc']}: {one['msg']}" for one in error.errors())


def _agreement_problems(files: Mapping[str, str]) -> Iterator[str]:
    cpu, cuda = (Image(files[name]) for name in DOCKERFILES)
    server = compose_of(files).services["server"]
    deployment, service = documents(files["kubernetes.yaml"])
    template = deployment["spec"]["template"]
    port = cpu.option("--port")
    (scraped,) = documents(files["prometheus.yaml"])
    ports = {
        "EXPOSE": cpu.last("EXPOSE").value,
        "cuda --port": cuda.option("--port"),
        "cuda EXPOSE": cuda.last("EXPOSE").value,
        "compose": server.ports[0].rpartition(":")[2],
        "annotation": template["metadata"]["annotations"]["prometheus.io/port"],
        "prometheus": scraped["scrape_configs"][0]["static_configs"][0]["targets"][0][7:],
        **{
            name: str(pod["containers"][0]["ports"][0]["containerPort"])
            for name, pod in pods_of(files).items()
        },
    }
    yield from (f"port {found} of {name} is not {port}" for name, found in ports.items()
                if found != port)  # fmt: skip
    if service["spec"]["selector"] != template["metadata"]["labels"]:
        yield "the Service selects other pods"
    assert server.healthcheck is not None
    times = server.healthcheck.model_dump(exclude={"test"})
    for image in (cpu, cuda):
        if ["CMD", *image.health_check] != server.healthcheck.test:
            yield "the images and Compose differ in their health check"
        if {key.replace("-", "_"): value for key, value in image.health_times.items()} != {
            key: str(value) for key, value in times.items()
        }:
            yield "the images and Compose differ in the times of their health check"
    names = {"compose": server.image} | {
        name: pod["containers"][0]["image"].partition("/")[2]
        for name, pod in pods_of(files).items()
    }
    wanted = f"d2nas-server:{__version__}"
    yield from (f"image of {name} is not {wanted}" for name, found in names.items()
                if found != wanted)  # fmt: skip
    yield from (f"{name} builds another image" for name in DOCKERFILES
                if f" -t {wanted}" not in files[name])  # fmt: skip
    users = {server.user} | {
        "{runAsUser}:{runAsGroup}".format(**pod["securityContext"])
        for pod in pods_of(files).values()
    }
    if users | {cuda.last("USER").value} != {cpu.last("USER").value}:
        yield f"users differ: {users}"
    assert server.build is not None
    context = (PROJECT / PLACE / server.build.context).resolve()
    if context != PROJECT or not (context / server.build.dockerfile).is_file():
        yield "Compose builds from another place"


def _operation_problems(files: Mapping[str, str]) -> Iterator[str]:
    limits = Limits()
    server = compose_of(files).services["server"]
    needed = limits.stop_seconds + LEAVING_SECONDS
    if seconds_of(server.stop_grace_period) < needed:
        yield f"Compose kills before the {needed} s of a stop"
    memory = limits.memory_bytes(0) + limits.num_workers * 20 * MAX_PIXELS + BASE_BYTES
    memories = {"compose.yaml": server.mem_limit}
    mounts = {"compose.yaml": all(mount.read_only for mount in server.volumes)}
    (command,) = {Image(files[name]).last("CMD").words[0] for name in DOCKERFILES}
    for name, pod in pods_of(files).items():
        (container,) = pod["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        if pod["terminationGracePeriodSeconds"] < pause + needed:
            yield f"{name} kills before the {pause} + {needed} s of a stop"
        memories[name] = container["resources"]["limits"]["memory"]
        mounts[name] = all(mount.get("readOnly") for mount in container.get("volumeMounts", []))
        own, shared = container["securityContext"], pod["securityContext"]
        if (
            own["allowPrivilegeEscalation"]
            or not own["readOnlyRootFilesystem"]
            or own["capabilities"] != {"drop": ["ALL"]}
            or not shared["runAsNonRoot"]
            or shared["seccompProfile"] != {"type": "RuntimeDefault"}
        ):
            yield f"{name} allows more than the server needs"
        start = container["startupProbe"]
        patience = f"{start['periodSeconds'] * start['failureThreshold']}s"
        if patience != Image(files["Dockerfile"]).health_times["start-period"]:
            yield f"{name} gives {patience} to start, the image another time"
    yield from (f"{name} has less than the {memory} bytes that the server may take"
                for name, found in memories.items() if bytes_of(found) < memory)  # fmt: skip
    yield from (f"{name} mounts what can be written" for name, found in mounts.items() if not found)
    deployment = pods_of(files)["kubernetes.yaml"]["containers"][0]
    if {server.volumes[0].target, deployment["volumeMounts"][0]["mountPath"]} != {command}:
        yield f"a bundle is mounted elsewhere than at {command}"
    (kserve,) = pods_of(files)["kserve-server.yaml"]["containers"]
    if (
        kserve["args"] != ["/mnt/models"]
        or {"name": "PROTOCOL", "value": "v2"} not in kserve["env"]
    ):
        yield "KServe mounts models at /mnt/models and asks by v2 only where PROTOCOL says so"


def _triton_problems(files: Mapping[str, str]) -> Iterator[str]:
    allowed = re.search(r'"onnxruntime-gpu(>=[0-9.]+)', files["pyproject.toml"])
    assert allowed is not None
    version = triton_of(files).runtimeVersion
    if TRITON_RUNTIMES.get(version, "0") not in SpecifierSet(allowed[1]):
        yield f"Triton {version} has no ONNX Runtime {allowed[1]}"


def problems(files: Mapping[str, str]) -> list[str]:
    """All that is wrong with the files."""
    try:
        forms = [*_form_problems(files)]
    except yaml.YAMLError as error:
        forms = [str(error)]
    # What is compared can be read.
    images = [problem for name in DOCKERFILES for problem in _image_problems(name, files)]
    if forms or images:
        return forms + images
    return [
        *_cuda_problems(files),
        *_version_problems(files),
        *_agreement_problems(files),
        *_operation_problems(files),
        *_triton_problems(files),
    ]


def seconds_of(text: str) -> int:
    """Seconds of a duration such as ``75s``."""
    return int(text.removesuffix("s"))


def bytes_of(text: str) -> int:
    """Bytes of a size such as ``1536Mi`` (Kubernetes) or ``1536m`` (Compose)."""
    return int(re.sub(r"(Mi|m)$", "", text)) * MIB
