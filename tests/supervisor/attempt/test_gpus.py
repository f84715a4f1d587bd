"""What the driver tells of devices (a stand-in for NVML): who holds them, their errors, and what doctor makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.attempt.gpus import Gpus
from supervisor.checkup.checks import Host, Verdict
from supervisor.checkup.gpus import gpus as checked
from supervisor.core.evidence import Xid
from supervisor.core.model import Cause
from supervisor.core.model import Verdict as Conclusion
from supervisor.loop.shrink import shrunk
from supervisor.run.spec import Spec

GB = 1 << 30


class Nvml(SimpleNamespace):
    """Two devices; `holders`, `errors`, `mode` and the like are set by the test."""

    NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, NVML_P2P_STATUS_OK, nvmlEventTypeXidCriticalError = 3, 0, 8

    def __init__(self) -> None:
        super().__init__(holders={0: [], 1: []}, used=[GB, GB], errors=[], mode=0, mig=0, peers=0, rows=(0, 0, 0, 0))
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetPciInfo = lambda at: SimpleNamespace(busId=f"00000000:{0x3B + at:02X}:00.0".encode())
        self.nvmlDeviceGetUUID = lambda at: f"GPU-{at}{at}{at}{at}-aa"
        self.nvmlDeviceGetComputeRunningProcesses = lambda at: [SimpleNamespace(pid=p) for p in self.holders[at]]
        self.nvmlDeviceGetMemoryInfo = lambda at: SimpleNamespace(used=self.used[at])
        self.nvmlDeviceGetComputeMode = lambda at: self.mode
        self.nvmlDeviceGetMigMode = lambda at: [self.mig, self.mig]
        self.nvmlDeviceGetRemappedRows = lambda at: self.rows
        self.nvmlDeviceGetP2PStatus = lambda one, other, what: self.peers
        self.nvmlEventSetCreate = lambda: "events"
        self.nvmlDeviceRegisterEvents = lambda *of: None

    def nvmlEventSetWait_v2(self, events: str, wait: int) -> Any:
        at, number = self.errors.pop(0)
        return SimpleNamespace(device=at, eventData=number)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)  # type: ignore[arg-type]
    return made


def test_a_device_is_free_once_no_dead_process_holds_it(nvml: Nvml) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    nvml.holders[1] = [done.pid]
    for environ, expected in (
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"CUDA_VISIBLE_DEVICES": "1"}, False),
    ):
        assert Gpus(environ).free(pids_are_ours=True) is expected
    assert [d.index for d in Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1111,0,7,1"}).devices] == [1, 0]
    nvml.holders[1] = [os.getpid()]
    assert Gpus({}).free(pids_are_ours=True) is True
    nvml.mode = 3
    assert Gpus({}).free(pids_are_ours=True) is False


def test_in_a_container_memory_tells(nvml: Nvml) -> None:
    """Its pids are the host's, and mean nothing: memory that no more changes is taken for a neighbour's."""
    nvml.holders[0] = [1 << 30]
    known = Gpus({})
    assert known.free(pids_are_ours=False) is False
    nvml.used[0] -= 1
    assert known.free(pids_are_ours=False) is False
    assert known.free(pids_are_ours=False) is True


def test_errors_are_told_from_the_watch_on(nvml: Nvml) -> None:
    nvml.errors += [(1, 79), (0, 31)]
    known = Gpus({})
    assert list(known.news()) == []
    known.watch()
    assert list(known.news()) == [Xid("0000:3c:00", 79), Xid("0000:3b:00", 31)]
    assert list(known.news()) == []


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    known = Gpus({})
    known.watch()
    assert known.why and known.free(pids_are_ours=True) is None and list(known.news()) == []


@pytest.mark.parametrize(
    ("nproc", "devices", "bus", "expected"),
    [
        (2, "", "0000:3b:00", (1, "1")),  # as the kernel says, not the rank
        (2, "", "", (1, "0")),
        (1, "GPU-0000,GPU-1111", "0000:3c:00", (1, "GPU-0000")),
        (2, "1", "", None),
    ],
)
def test_a_spec_without_the_lost_device(
    nvml: Nvml, nproc: int, devices: str, bus: str, expected: tuple[int, str] | None
) -> None:
    spec = Spec("run", "mark", ("train.py",), False, nproc, "/", devices=devices)
    found = shrunk(spec, Conclusion(Cause.GPU_LOST, "", 9.0, rank=1, device=bus), {"CUDA_VISIBLE_DEVICES": ""})
    assert (found and (found.nproc, found.devices)) == expected


@pytest.mark.parametrize(
    ("about", "name", "said"),
    [
        ({}, "", ""),
        ({"mig": 1}, "gpu mode", "MIG"),
        ({"mode": 3}, "gpu mode", "one process only"),
        ({"rows": (0, 0, 1, 0)}, "gpu mode", "ECC"),
        ({"peers": 4}, "peer access", "0-1"),
    ],
)
def test_doctor_says_what_to_do(nvml: Nvml, tmp_path: Path, about: dict[str, Any], name: str, said: str) -> None:
    assert checked(Host(tmp_path, proc=tmp_path)) == []
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.158.01  Mon")
    vars(nvml).update(about)

    found = {check.name: check for check in checked(Host(tmp_path, proc=tmp_path))}

    assert "570.158.01" in found["nvml"].text and found["nvml"].verdict is Verdict.OK
    for check in found.values():
        if check.name != "locked memory":  # as this machine has it
            assert (check.verdict is Verdict.WARN) is (check.name == name) is bool(check.next)
    assert not name or said in found[name].text
