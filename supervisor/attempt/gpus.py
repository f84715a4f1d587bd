"""The NVIDIA devices as the driver tells them through NVML. Without the driver, or without the package nvidia-ml-py,
nothing is known."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.evidence import Xid
from trainer.rundir.machine.proc import is_running

DRIVER = Path("/proc/driver/nvidia")


def are_here(driver: Path = DRIVER) -> bool:
    """Whether this machine has the driver."""
    return driver.exists()


@dataclass(frozen=True, slots=True)
class Device:
    """One device."""

    index: int
    uuid: str
    bus: str
    """Its PCI address without the function, in small letters: `0000:3b:00`."""
    handle: Any


class Gpus:
    """The devices that `environ` lets a program see. `why` says why none is known."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.why = ""
        self.devices: tuple[Device, ...] = ()
        self._nvml: Any = None
        self._events: Any = None
        self._used: tuple[int, ...] = ()
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            found = [self._device(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except ImportError:
            self.why = "the package nvidia-ml-py is missing"
        except Exception as error:
            self.why = str(error)
        else:
            self.devices = tuple(visible(found, environ.get("CUDA_VISIBLE_DEVICES")))

    @property
    def nvml(self) -> Any:
        """The module of the driver's functions."""
        return self._nvml

    def _device(self, index: int) -> Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        bus = _text(self._nvml.nvmlDeviceGetPciInfo(handle).busId)
        return Device(index, _text(self._nvml.nvmlDeviceGetUUID(handle)), address(bus), handle)

    def watch(self) -> None:
        """Errors of the devices are told from here on."""
        with contextlib.suppress(Exception):
            events = self._nvml.nvmlEventSetCreate()
            for device in self.devices:
                self._nvml.nvmlDeviceRegisterEvents(device.handle, self._nvml.nvmlEventTypeXidCriticalError, events)
            self._events = events

    def news(self) -> Iterator[Xid]:
        """The errors since the last call, where watch() could be called."""
        while self._events is not None:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
                bus = address(_text(self._nvml.nvmlDeviceGetPciInfo(event.device).busId))
            except Exception:
                # Usually: nothing more has happened.
                return
            yield Xid(bus, int(event.eventData))

    def free(self, pids_are_ours: bool) -> bool | None:
        """Whether no dead process holds a device. None if nobody can tell. Where the driver's pids are not ours (in a
        container): whether the memory in use is the same as at the last call."""
        if not self.devices:
            return None
        try:
            holders = {device: self._holders(device) for device in self.devices}
            before, self._used = self._used, tuple(map(self._used_of, self.devices))
            alone = self._nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
            taken = any(
                found and self._nvml.nvmlDeviceGetComputeMode(device.handle) == alone
                for device, found in holders.items()
            )
        except Exception:
            return None
        if not pids_are_ours:
            return not taken and before == self._used
        return not taken and all(is_running(pid) for found in holders.values() for pid in found)

    def _holders(self, device: Device) -> list[int]:
        return [process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(device.handle)]

    def _used_of(self, device: Device) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(device.handle).used)


def visible(found: list[Device], told: str | None) -> Iterator[Device]:
    """Those of the devices that CUDA_VISIBLE_DEVICES names, by number or by UUID. All if it is not set."""
    if told is None:
        yield from found
        return
    for word in told.split(","):
        match = [
            d for d in found if word.strip() in (str(d.index), d.uuid) or (len(word) > 4 and d.uuid.startswith(word))
        ]
        if not match:
            return  # CUDA ends the list at the first name that it does not know.
        yield match[0]


def address(bus: str) -> str:
    """`00000000:3B:00.0` as the kernel's log writes it: `0000:3b:00`."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest.partition('.')[0]}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
