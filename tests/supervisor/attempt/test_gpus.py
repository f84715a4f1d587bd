"""What the driver tells of devices (a stand-in for NVML): who holds them, their errors, and what doctor makes of it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.attempt.evidence import Witness
from supervisor.attempt.gpus import Gpus
from supervisor.attempt.kernel_log import KernelLog
from supervisor.checkup.checks import Host, Verdict
from supervisor.checkup.gpus import gpus as checked
from supervisor.core.evidence import Xid
from supervisor.core.model import Cause, Exit
from supervisor.core.model import Verdict as Conclusion
from supervisor.loop.shrink import shrunk
from supervisor.nodes.limb import Limb
from supervisor.run.spec import Spec
from trainer.rundir.layout import AttemptDir, RunDir

GB = 1 << 30


class Timeout(Exception):
    pass


class GpuIsLost(Exception):
    pass


_PLACES = [ctypes.c_int(index) for index in range(8)]


class Nvml(SimpleNamespace):
    """Two devices; `holders`, `errors`, `mode` and the like are set by the test. One that is `lost` answers nothing."""

    NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, NVML_P2P_STATUS_OK, nvmlEventTypeXidCriticalError = 3, 0, 8
    NVMLError_Timeout, NVMLError_GpuIsLost = Timeout, GpuIsLost

    def __init__(self) -> None:
        super().__init__(holders={0: [], 1: []}, used=[GB, GB], errors=[], mode=0, mig=0, peers=0, rows=(0, 0, 0, 0))
        self.lost: set[int] = set()
        self.watched: list[int] = []
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = self.handle
        self.nvmlDeviceGetPciInfo = lambda of: SimpleNamespace(busId=f"00000000:{0x3B + self.at(of):02X}:00.0".encode())
        self.nvmlDeviceGetUUID = lambda of: "GPU-{0}{0}{0}{0}-aa".format(self.at(of))
        self.names = ["H100", "H100"]
        self.nvmlDeviceGetName = lambda of: self.names[self.at(of)]
        self.nvmlDeviceGetComputeRunningProcesses = lambda of: [
            SimpleNamespace(pid=pid) for pid in self.holders[self.at(of)]
        ]
        self.nvmlDeviceGetMemoryInfo = lambda of: SimpleNamespace(used=self.used[self.at(of)])
        self.nvmlDeviceGetComputeMode = lambda of: self.mode
        self.nvmlDeviceGetMigMode = lambda of: [self.mig, self.mig]
        self.nvmlDeviceGetRemappedRows = lambda of: self.rows
        self.nvmlDeviceGetP2PStatus = lambda one, other, what: self.peers
        self.nvmlEventSetCreate = lambda: self.watched.clear() or "events"
        self.nvmlEventSetFree = lambda events: None
        self.nvmlDeviceRegisterEvents = lambda of, *what: self.watched.append(self.at(of))

    def handle(self, index: int) -> Any:
        """A pointer of its own each time, as the library gives them."""
        if index in self.lost:
            raise GpuIsLost("GPU is lost")
        return ctypes.pointer(_PLACES[index])

    def at(self, handle: Any) -> int:
        """The number of a device that answers."""
        index = int(handle.contents.value)
        self.handle(index)
        return index

    def nvmlEventSetWait_v2(self, events: str, wait: int) -> Any:
        if set(self.watched) & self.lost and not self.errors:
            raise GpuIsLost("GPU is lost")
        if not self.errors:
            raise Timeout
        at, number = self.errors.pop(0)
        return SimpleNamespace(device=ctypes.pointer(_PLACES[at]), eventData=number)


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


def test_a_lost_device_is_told_though_it_answers_nothing(nvml: Nvml) -> None:
    """Its last word is told, and its silence once; the other device is watched as before."""
    known = Gpus({})
    known.watch()
    nvml.lost, nvml.errors = {1}, [(1, 31)]
    assert list(known.news()) == [Xid("0000:3c:00", 31), Xid("0000:3c:00", 79, None, "GPU is lost")]
    assert list(known.news()) == [] and nvml.watched == [0]
    nvml.errors = [(0, 31)]
    assert list(known.news()) == [Xid("0000:3b:00", 31)]


def test_one_device_that_cannot_be_watched_leaves_the_others(nvml: Nvml) -> None:
    known = Gpus({})
    nvml.lost = {0}
    known.watch()
    assert nvml.watched == [1]


def files_of_two(path: Path) -> Path:
    """The driver's files of the two devices."""
    for index in range(2):
        folder = path / f"gpus/0000:{0x3B + index:02x}:00.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "information").write_text(f"Model: \t\t H100\nGPU UUID: \t GPU-{index}{index}{index}{index}-aa\n")
    return path


@pytest.mark.parametrize("package", [True, False])
def test_a_device_that_does_not_answer_is_known_by_the_drivers_files(
    nvml: Nvml, package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the one beside it as before. Without the package all are known so."""
    driver = files_of_two(tmp_path)
    nvml.lost = {0}
    if not package:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    for told in ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "GPU-0000,GPU-1111"}):
        found = Gpus(told, driver).devices
        assert [(device.index, device.uuid, device.bus) for device in found] == [
            (0, "GPU-0000-aa", "0000:3b:00"),
            (1, "GPU-1111-aa", "0000:3c:00"),
        ]
    assert (Gpus({}, driver).free(pids_are_ours=True) is True) is package
    assert [device.index for device in Gpus({}, tmp_path / "none").devices] == ([1] if package else [])


def test_without_the_package_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    known = Gpus({})
    known.watch()
    assert known.why and known.free(pids_are_ours=True) is None and list(known.news()) == []


@pytest.mark.parametrize(
    ("nproc", "devices", "bus", "expected"),
    [
        (2, "", "0000:3b:00", (1, "GPU-1111-aa")),  # as the kernel says, not the rank
        (2, "", "", (1, "GPU-0000-aa")),
        (2, "1,0", "", (1, "GPU-1111-aa")),
        (2, "1,0", "0000:3c:00", (1, "GPU-0000-aa")),
        (2, "MIG-0000,MIG-1111", "", (1, "MIG-0000")),
        (1, "GPU-0000,GPU-1111", "0000:3c:00", (1, "GPU-0000-aa")),
        (2, "1", "", None),
        (2, "0", "0000:3c:00", (2, "0")),  # that device is none of ours
    ],
)
def test_a_spec_without_the_lost_device(
    nvml: Nvml, nproc: int, devices: str, bus: str, expected: tuple[int, str] | None
) -> None:
    spec = Spec("run", "mark", ("train.py",), False, nproc, "/", devices=devices)
    known = Gpus({"CUDA_VISIBLE_DEVICES": devices} if devices else {}).devices
    lost = Conclusion(Cause.GPU_LOST, "", 9.0, rank=1, device=bus)
    found = shrunk(spec, lost, {"CUDA_VISIBLE_DEVICES": ""}, known)
    assert (found and (found.nproc, found.devices)) == expected


@pytest.mark.parametrize(
    ("devices", "order", "bus", "expected"),
    [
        ("0,1", "", "0000:3b:00", "GPU-1111-aa"),  # all of them, in whatever order
        ("", "", "0000:3b:00", "GPU-1111-aa"),
        ("GPU-1111,GPU-0000", "", "", "GPU-1111-aa"),
        ("1,0", "PCI_BUS_ID", "", "GPU-1111-aa"),
        # CUDA's numbers: nobody can tell here which devices they are.
        ("0,1", "", "", "0"),
        ("", "", "", "0"),
        ("1", "", "0000:3b:00", None),
    ],
)
def test_numbers_of_cards_that_are_not_alike(
    nvml: Nvml, devices: str, order: str, bus: str, expected: str | None
) -> None:
    """CUDA counts the fastest first, NVML by addresses."""
    nvml.names = ["L4", "H100"]
    environ = {**({"CUDA_VISIBLE_DEVICES": devices} if devices else {}), "CUDA_DEVICE_ORDER": order}
    spec = Spec("run", "mark", ("train.py",), False, 2, "/", devices=devices)

    left = shrunk(spec, Conclusion(Cause.GPU_LOST, "", 9.0, rank=1, device=bus), environ, Gpus(environ).devices)

    assert (left and left.devices) == expected


def test_all_devices_count_if_nobody_can_tell_which_are_meant(nvml: Nvml, tmp_path: Path) -> None:
    """Cards that are not alike, by NVML or by the driver's files, of which numbers are given."""

    def counted(environ: dict[str, str]) -> list[int]:
        return [device.index for device in Gpus(environ, files_of_two(tmp_path)).devices]

    told = {"CUDA_VISIBLE_DEVICES": "1"}
    assert counted(told) == [1]
    nvml.names = ["L4", "H100"]
    assert counted(told) == [0, 1]
    assert counted({**told, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == counted({"CUDA_VISIBLE_DEVICES": "GPU-1111"}) == [1]
    nvml.lost, nvml.names = {0}, ["", "L4"]
    assert counted(told) == [0, 1]


def test_the_driver_is_asked_at_once_when_something_has_failed(nvml: Nvml, tmp_path: Path) -> None:
    """However short ago it was asked: the verdict waits for no second look."""
    witness = Witness(AttemptDir(tmp_path / "0000"), 0, "mark", [])
    witness._kernel = KernelLog(tmp_path / "none")
    witness.gpus = known = Gpus({})
    known.watch()
    assert witness.hear((), (), {0: 4}, {}, {}).xids == ()
    nvml.errors = [(1, 79)]
    assert witness.hear((Exit(0, 1, 9.0),), (), {0: 4}, {}, {}).xids == (Xid("0000:3c:00", 79),)


def test_a_lost_device_counts_no_more(nvml: Nvml, tmp_path: Path) -> None:
    """As it was known before the loss; nor for a limb of the run as it is resumed later."""
    spec = Spec("run", "mark", ("train.py",), False, 2, "/")
    limb = Limb(RunDir(tmp_path), spec, {}, set)
    limb.gpus()
    nvml.lost = {0}
    lost = Conclusion(Cause.GPU_LOST, "", 9.0, rank=1, device="0000:3b:00")

    left = shrunk(spec, lost, {}, limb.gpus().devices)

    assert left is not None and left.devices == "GPU-1111-aa"
    limb.use(left)
    for each in (limb, Limb(RunDir(tmp_path), left, {}, set)):
        assert [device.bus for device in each.gpus().devices] == ["0000:3c:00"]
    assert nvml.watched == [1]
    assert shrunk(left, lost, {}, limb.gpus().devices) is left


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
