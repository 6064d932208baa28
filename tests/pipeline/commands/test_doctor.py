"""``d2nas doctor``: what loads here, and advice for each gap."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli import run
from pipeline.preflight import doctor


def test_doctor_tells_what_loads_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    findings = {finding["subject"]: finding for finding in json.loads(capfd.readouterr().out)}
    assert findings["python"]["state"] == "ok"
    assert findings["data digits"]["state"] == "ok"
    assert findings["ONNX Runtime on CPU"]["state"] == "ok"
    assert "GiB" in findings["free space"]["detail"]
    for finding in findings.values():
        assert finding["state"] == "ok" or finding["advice"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_doctor_compares_shared_memory_with_what_gpus_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    free = 0
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)

    def look() -> doctor.Finding:
        (finding,) = doctor._shared_memory()
        return finding

    free = 64 * 2**20  # a container's default
    found = look()
    assert found.state == ("problem" if gpus else "absent")
    assert "64 MiB free" in found.detail
    assert "--shm-size" in str(found.advice)
    free = doctor.MIN_SHARED_BYTES
    assert (look().state, look().advice) == ("ok", None)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert look().state != "ok"
    assert "read-only" in look().detail
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")  # not Linux
    assert doctor._shared_memory() == []
