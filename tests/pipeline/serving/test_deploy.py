"""Files of ``pipeline/serving/deploy/``: their forms, that they agree, and that what they run runs.

No image is built here: its commands are run by this interpreter, its probes asked of a server.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deploy_files
import pytest
from bundles import bundle_of
from children import PROJECT
from deploy_files import DOCKERFILES, Image, lines_of, pods_of, problems, read_all
from packaging.version import Version
from prometheus_client.parser import text_string_to_metric_families
from served import ask_once, cold_service, running
from toy import Place

FILES = read_all()
INSTALLED = "/opt/d2nas/bin/"


def changed(name: str, old: str, new: str) -> dict[str, str]:
    assert old in FILES[name]
    return FILES | {name: FILES[name].replace(old, new, 1)}


def test_the_files_fit_their_forms_and_each_other() -> None:
    assert problems(FILES) == []


CPU, CUDA = DOCKERFILES
KUBERNETES, KSERVE, TRITON = "kubernetes.yaml", "kserve-server.yaml", "kserve-triton.yaml"
WRONG = [
    # Forms
    (KUBERNETES, "livenessProbe:", "livenesProbe:", "'livenesProbe' was unexpected"),
    (KUBERNETES, "replicas: 2", 'replicas: "2"', "is not of type"),
    (KUBERNETES, "targetPort", "targtPort", "'targtPort' was unexpected"),
    (KUBERNETES, "replicas: 2", "replicas: 2\n  replicas: 3", "stands twice"),
    (KSERVE, "  startupProbe:", "  startProbe:", "'startProbe' was unexpected"),
    (KSERVE, "    containers:", "    model: {}\n    containers:", "'model' was unexpected"),
    (KSERVE, "v1beta1", "v1", "Input should be 'serving.kserve.io/v1beta1'"),
    (TRITON, "storageUri: p", "storageURI: p", "Extra inputs"),
    (TRITON, "protocolVersion: v2", "protocolVersion: v1", "Input should be 'v2'"),
    ("compose.yaml", "mem_limit", "memory_limit", "Extra inputs"),
    ("compose.yaml", "retries: 3", 'retries: "3"', "valid integer"),
    ("compose.yaml", "  server:\n", "  serve:\n", "Input should be 'server'"),
    # Images
    (CPU, "3.11-slim-bookworm\n", "latest\n", "has no version"),
    (CPU, "USER 10001:10001", "USER root", "is root"),
    (CPU, "USER 10001:10001", "USER 10001:10001\nUSER 0:0", "is root"),
    (CPU, '["/bundle"]', "/bundle", "run by a shell"),
    (CUDA, 'ENTRYPOINT ["/opt', 'ENTRYPOINT exec "/opt', "run by a shell"),
    (CPU, '"0.0.0.0"', '"127.0.0.1"', "nobody outside"),
    (CPU, "COPY d2nas d2nas", "COPY source d2nas", "source is not there"),
    (CPU, "COPY d2nas d2nas", "COPY d2nas exported ./", "does not let just"),
    (".dockerignore", "!pipeline\n", "", "does not let just"),
    (".dockerignore", "*\n", "", "does not let just"),
    (CPU, " -c constraints.txt", "", "other packages"),
    (CPU, "--no-deps .", ".", "other packages"),
    (CUDA, '"cuda"]', '"auto"]', "the CPU would"),
    (CUDA, "cudnn-runtime", "runtime", "no cuDNN"),
    ("constraints.txt", "pillow==", "pillow>=", "is no one version"),
    ("constraints.txt", "pillow==", "pillow2==", "pillow>=11 is not met"),
    ("constraints.txt", "onnx==1.", "onnx==0.", "is not met"),
    ("constraints.txt", "onnxruntime==1.31.1", "onnxruntime==1.31.0", "differ in ONNX Runtime"),
    # Agreement
    (CPU, "EXPOSE 8000", "EXPOSE 8080", "port 8080 of EXPOSE"),
    (CUDA, '"8000"', '"9000"', "port 9000 of cuda --port"),
    ("compose.yaml", ":8000:8000", ":8000:8001", "port 8001 of compose"),
    ("prometheus.yaml", "8000", "8001", "port 8001 of prometheus"),
    (KUBERNETES, "containerPort: 8000", "containerPort: 8001", "port 8001 of kubernetes.yaml"),
    (KSERVE, "containerPort: 8000", "containerPort: 8001", "port 8001 of kserve-server.yaml"),
    (KUBERNETES, '"8000"', '"8001"', "port 8001 of annotation"),
    (KUBERNETES, "  selector:\n    app", "  selector:\n    x: y\n    app", "selects other pods"),
    (CUDA, "/v2/health/ready", "/v2/health/live", "differ in their health check"),
    (CPU, "--retries=3", "--retries=4", "differ in the times"),
    (KSERVE, "d2nas-server:0.1.0", "d2nas-server:0.0.9", "image of kserve-server.yaml"),
    (CPU, "-t d2nas-server:0.1.0", "-t d2nas", "builds another image"),
    (KUBERNETES, "runAsUser: 10001", "runAsUser: 10002", "users differ"),
    ("compose.yaml", "context: ../../..", "context: ../..", "from another place"),
    # Operation
    ("compose.yaml", "stop_grace_period: 75s", "stop_grace_period: 60s", "Compose kills before"),
    (KUBERNETES, "PeriodSeconds: 75", "PeriodSeconds: 70", "kills before the 5 + 70 s"),
    (KSERVE, "seconds: 5", "seconds: 6", "kills before the 6 + 70 s"),
    (KUBERNETES, "memory: 1536Mi", "memory: 1024Mi", "has less than the"),
    ("compose.yaml", "mem_limit: 1536m", "mem_limit: 1024m", "has less than the"),
    ("compose.yaml", "        read_only: true\n", "", "mounts what can be written"),
    (KUBERNETES, "              readOnly: true\n", "", "mounts what can be written"),
    (KUBERNETES, "Filesystem: true", "Filesystem: false", "allows more"),
    (KSERVE, "runAsNonRoot: true", "runAsNonRoot: false", "allows more"),
    (KUBERNETES, "drop: [ALL]", "drop: [KILL]", "allows more"),
    (KSERVE, "failureThreshold: 60", "failureThreshold: 30", "gives 60s to start"),
    (KUBERNETES, "mountPath: /bundle", "mountPath: /models", "mounted elsewhere"),
    (KSERVE, "args: [/mnt/models]", "args: [/bundle]", "KServe mounts"),
    (KSERVE, "value: v2", "value: v1", "KServe mounts"),
    (TRITON, "26.07-py3", "23.05-py3", "no ONNX Runtime >="),
]


@pytest.mark.parametrize(("name", "old", "new", "problem"), WRONG)
def test_control_what_is_wrong_with_a_file_is_told(
    name: str, old: str, new: str, problem: str
) -> None:
    found = problems(changed(name, old, new))
    assert any(problem in one for one in found), found


# What the images run


def test_the_images_install_what_is_asked_for(tmp_path: Path) -> None:
    wanted = lines_of(FILES[deploy_files.REQUIREMENTS])
    of_cpu, of_cuda = (
        deploy_files.requirements_of(Image(FILES[name]), "\n".join(wanted), tmp_path)
        for name in DOCKERFILES
    )
    assert of_cuda == wanted
    assert [line.replace("onnxruntime>", "onnxruntime-gpu>") for line in of_cpu] == [
        line.replace("onnxruntime>", "onnxruntime-gpu>") for line in wanted
    ]
    assert not [line for line in of_cpu if "-gpu" in line]


def test_control_without_its_edit_the_cpu_image_would_install_cuda(tmp_path: Path) -> None:
    image = Image(changed(CPU, "s/^onnxruntime-gpu/", "s/^torch/")[CPU])
    wanted = FILES[deploy_files.REQUIREMENTS]
    found = deploy_files.requirements_of(image, wanted, tmp_path)
    assert found == lines_of(wanted)


def cuda_of(dockerfile: str) -> set[str]:
    return {re.findall(r":(\d+\.\d+)\.\d+-", base)[0] for base in Image(dockerfile).bases}


def test_the_base_has_the_cuda_that_the_runtime_is_built_with() -> None:
    build = pytest.importorskip("onnxruntime.capi.build_and_package_info")
    (pinned,) = re.findall(r"^onnxruntime-gpu==(.*)$", FILES["constraints.txt"], re.MULTILINE)
    if Version(build.__version__) > Version(pinned) or not getattr(build, "cuda_version", ""):
        pytest.skip("the runtime here is newer than the image's, or without CUDA")
    assert cuda_of(FILES[CUDA]) == {build.cuda_version}
    assert cuda_of(changed(CUDA, "cuda:13.0.2", "cuda:12.8.1")[CUDA]) == {"12.8"}


def replayed(words: list[str], port: int | str, bundle: Path | None = None) -> list[str]:
    """A command of an image, with this interpreter and on another port of this machine alone."""
    programs = {"d2nas": [sys.executable, "-m", "d2nas"], "python": [sys.executable]}
    first, *rest = words
    assert first.startswith(INSTALLED)
    here = {"0.0.0.0": "127.0.0.1", "8000": str(port), "/bundle": str(bundle)}
    return [
        *programs[first.removeprefix(INSTALLED)],
        *(here.get(word, word.replace(" 8000,", f" {port},")) for word in rest),
    ]


def run(words: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


@contextmanager
def warming() -> Iterator[tuple[str, threading.Event]]:
    """A server that is not ready until it may be; its URL."""
    service, _ = cold_service()
    may = threading.Event()

    def warm_up() -> None:
        assert may.wait(60)
        service.warm_up()

    try:
        with running(service, warm_up=warm_up) as url:
            yield url, may
    finally:
        may.set()


def wait_until_ready(url: str) -> None:
    while ask_once(url, "GET", "/v2/health/ready").status != 200:
        pass


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_tells_a_ready_server_from_others(name: str) -> None:
    words = Image(FILES[name]).health_check
    with warming() as (url, may):
        check = replayed(words, url.rpartition(":")[2])
        assert run(check).returncode == 1
        may.set()
        wait_until_ready(url)
        # A proxy is not asked, here one that is not there.
        assert run(check, http_proxy="http://127.0.0.1:9").returncode == 0
    assert run(check).returncode == 1


def test_the_probes_are_answered_as_expected() -> None:
    paths = {
        pod["containers"][0][probe]["httpGet"]["path"]
        for pod in pods_of(FILES).values()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    (scraped,) = deploy_files.documents(FILES["prometheus.yaml"])
    (metrics,) = {
        scraped["scrape_configs"][0]["metrics_path"],
        *re.findall(r"prometheus.io/path: (\S+)", FILES[KUBERNETES]),
    }
    with warming() as (url, may):
        assert {ask_once(url, "GET", path).status for path in paths} == {503}
        may.set()
        wait_until_ready(url)
        assert {ask_once(url, "GET", path).status for path in paths} == {200}
        text = ask_once(url, "GET", metrics).body.decode()
    assert "nv_inference_count" in {one.name for one in text_string_to_metric_families(text)}


def test_the_command_of_the_image_serves_and_ends(finished: Place) -> None:
    command = replayed(Image(FILES[CPU]).command, 0, bundle_of(finished))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        lines = iter(server.stderr)
        said = list(iter(lambda: next(lines), "ready\n"))
        url = said[-1].split()[-1]
        assert run(replayed(Image(FILES[CPU]).health_check, url.rpartition(":")[2])).returncode == 0
        server.send_signal(signal.SIGTERM)
        assert [*lines] == ["stopped\n"]
    assert server.returncode == 0


def test_the_cuda_image_does_not_serve_without_a_gpu(finished: Place) -> None:
    command = replayed(Image(FILES[CUDA]).command, 0, bundle_of(finished))
    done = run(command, CUDA_VISIBLE_DEVICES="")
    assert done.returncode in (2, 3)
    assert "CUDA was asked for" in done.stderr
    assert "listening" not in done.stderr


def test_the_readme_runs_what_is_there() -> None:
    text = FILES["README.md"]
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    build, start, *asked = [shlex.split(line) for line in commands.splitlines()]
    server = deploy_files.compose_of(FILES).services["server"]
    assert (PROJECT / build[build.index("-f") + 1]).is_file()
    assert build[build.index("-t") + 1] == start[-1] == server.image
    assert start[start.index("--memory") + 1] == server.mem_limit
    assert f"{start[start.index('--stop-timeout') + 1]}s" == server.stop_grace_period
    assert len(asked) == 2
    assert {name for name in FILES if f"`{name}`" in text} >= FILES.keys() - {
        "README.md", ".dockerignore", "pyproject.toml", deploy_files.REQUIREMENTS,
    }  # fmt: skip


@pytest.mark.installs
def test_the_steps_of_the_image_make_an_environment_that_serves(
    finished: Place, tmp_path: Path
) -> None:
    image, source = Image(FILES[CPU]), tmp_path / "source"
    source.mkdir()
    for sources, _ in image.copied:
        for one in sources:
            whole = PROJECT / one
            target = source / (whole.name if len(sources) > 1 else one)
            (shutil.copytree if whole.is_dir() else shutil.copy)(whole, target)
    for command in image.runs:
        here = command.replace("/opt/d2nas", str(tmp_path / "d2nas"))
        here = here.replace("python3 ", f"{sys.executable} ")
        subprocess.run(["sh", "-c", here], cwd=source, check=True)
    words = replayed(image.command, 0, bundle_of(finished))
    command = [str(tmp_path / "d2nas/bin/d2nas"), *words[3:]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={}) as server:
        assert server.stderr is not None
        said = list(iter(server.stderr.readline, "ready\n"))
        server.terminate()
    assert server.returncode == 0, said
    listed = run([sys.executable, "-m", "pip", "--python", str(tmp_path / "d2nas"), "freeze"])
    pins = lines_of(FILES["constraints.txt"])
    assert {line for line in listed.stdout.splitlines() if "==" in line} == {
        line for line in pins if not line.startswith("onnxruntime-gpu")
    }
