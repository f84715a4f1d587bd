"""Checks of the GPUs that need no torch: driver, NVML, MIG, compute mode, peer access, locked memory."""

from __future__ import annotations

import itertools
import re
import resource
from collections.abc import Callable
from typing import Any

from supervisor.attempt.gpus import DRIVER, Device, Gpus
from supervisor.checkup.checks import Check, Host, Verdict, read

_VERSION = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(\d+\.\d+(?:\.\d+)?)")


def gpus(host: Host) -> list[Check]:
    """The findings about this machine's NVIDIA devices. None without the driver."""
    driver = host.proc / DRIVER.relative_to("/proc")
    if not driver.exists():
        return []
    known = Gpus({})
    version = _VERSION.search(read(driver / "version"))
    text = f"driver {version[1] if version else 'of unknown version'}"
    if known.why:
        hint = "pip install nvidia-ml-py" if "package" in known.why else "run nvidia-smi: driver and library must match"
        without = "a lost GPU is known from the kernel's log alone, and a busy one is waited for by time"
        return [Check("nvml", Verdict.WARN, f"{text}; NVML tells nothing ({known.why}): {without}", hint), _locked()]
    if silent := [device.index for device in known.devices if device.handle is None]:
        hint = "nvidia-smi --gpu-reset, or reboot; if it comes back, replace it"
        return [Check("nvml", Verdict.WARN, f"{text}; {_names(silent)} does not answer: it is lost", hint), _locked()]
    found = [Check("nvml", Verdict.OK, f"{text}, {len(known.devices)} devices"), _modes(known), _locked()]
    return [*found, _peers(known)] if len(known.devices) > 1 else found


def _modes(known: Gpus) -> Check:
    nvml, split, alone, broken = known.nvml, [], [], []
    for device in known.devices:
        if (_asked(nvml.nvmlDeviceGetMigMode, device) or [0])[0] == 1:
            split.append(device.index)
        if _asked(nvml.nvmlDeviceGetComputeMode, device):
            alone.append(device.index)
        rows = _asked(nvml.nvmlDeviceGetRemappedRows, device) or (0, 0, 0, 0)
        if rows[2] or rows[3]:
            broken.append(device.index)
    if broken:
        text = f"{_names(broken)} has memory that the driver could not yet put out of use after an ECC error"
        return Check("gpu mode", Verdict.WARN, text, "nvidia-smi --gpu-reset, or reboot; if it comes back, replace it")
    if alone:
        text = f"{_names(alone)} takes one process only: no standby is on it, and a restart builds everything anew"
        return Check("gpu mode", Verdict.WARN, text, "nvidia-smi -c DEFAULT")
    if split:
        text = f"{_names(split)} is split (MIG): a rank sees one part, and NCCL joins no two parts of one device"
        return Check("gpu mode", Verdict.WARN, text, "give each rank a part by CUDA_VISIBLE_DEVICES, or use gloo")
    return Check("gpu mode", Verdict.OK, "no device is split, or for one process only")


def _peers(known: Gpus) -> Check:
    nvml = known.nvml

    def are_apart(one: Device, other: Device) -> bool:
        try:
            return bool(nvml.nvmlDeviceGetP2PStatus(one.handle, other.handle, 0) != nvml.NVML_P2P_STATUS_OK)
        except Exception:
            return False

    pairs = list(itertools.combinations(known.devices, 2))
    found = [f"{one.index}-{other.index}" for one, other in pairs if are_apart(one, other)]
    if found:
        text = f"devices {', '.join(found[:4])}{' …' if len(found) > 4 else ''} cannot read each other's memory"
        hint = "NCCL goes through /dev/shm then; see `nvidia-smi topo -p2p r`, and ACS and IOMMU in the BIOS"
        return Check("peer access", Verdict.WARN, text, hint)
    return Check("peer access", Verdict.OK, f"each of {len(known.devices)} devices can read the others' memory")


def _locked() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if 0 <= limit < 64 << 20:
        text = f"a process may lock {limit >> 10} KB of memory: NCCL over InfiniBand fails to register more"
        return Check("locked memory", Verdict.WARN, text, "ulimit -l unlimited (docker run --ulimit memlock=-1)")
    size = "any" if limit < 0 else f"{limit >> 20} MB"
    return Check("locked memory", Verdict.OK, f"a process may lock {size} of memory")


def _asked(question: Callable[[Any], Any], device: Device) -> Any:
    """The driver's answer. None if this device, or this driver, has none."""
    try:
        return question(device.handle)
    except Exception:
        return None


def _names(indices: list[int]) -> str:
    return f"GPU {', '.join(map(str, indices))}"
