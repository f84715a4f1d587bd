"""The NVIDIA devices as the driver tells them: through NVML, if the package nvidia-ml-py is here, and in its files. A
device that is lost answers no call any more, so it is known as it was before, or by the files alone."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.diagnosis.gpu import address
from supervisor.core.evidence import Xid
from trainer.rundir.machine.proc import is_running

DRIVER = Path("/proc/driver/nvidia")
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_LOST_XID = 79
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)", re.MULTILINE)
_MODEL = re.compile(r"^Model:\s*(\S.*?)\s*$", re.MULTILINE)


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
    handle: Any = None
    """NVML's. None of a device that does not answer, and without NVML."""
    name: str = ""
    """The name of the card: cards of one name are equally fast."""


class Gpus:
    """The devices that `environ` lets a program see. `why` says why NVML tells nothing."""

    def __init__(self, environ: Mapping[str, str], driver: Path = DRIVER) -> None:
        self.why = ""
        self._nvml: Any = None
        self._events: Any = None
        self._used: tuple[int, ...] = ()
        self._lost: set[int] = set()
        listed = list(_listed(driver))
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            listed = list(self._asked(self._nvml.nvmlDeviceGetCount(), listed))
        except ImportError:
            self.why = "the package nvidia-ml-py is missing"
        except Exception as error:
            self.why = str(error)
        self._all = listed
        self._order = environ.get(ORDER)
        self.devices = tuple(visible(self._all, environ.get(VISIBLE), self._order))

    @property
    def nvml(self) -> Any:
        """The module of the driver's functions."""
        return self._nvml

    def use(self, told: str) -> None:
        """Only these devices count from here on, by the names that CUDA_VISIBLE_DEVICES has for them."""
        self.devices = tuple(visible(self._all, told, self._order))
        self.watch()

    def _asked(self, count: int, listed: list[Device]) -> Iterator[Device]:
        """The devices as NVML counts them. One that does not answer is as the driver has `listed` it, if it has."""
        for index in range(count):
            try:
                yield self._device(index)
            except Exception:
                yield from [device for device in listed if len(listed) == count and device.index == index]

    def _device(self, index: int) -> Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        bus = _text(self._nvml.nvmlDeviceGetPciInfo(handle).busId)
        uuid, name = _text(self._nvml.nvmlDeviceGetUUID(handle)), _text(self._nvml.nvmlDeviceGetName(handle))
        return Device(index, uuid, address(bus), handle, name)

    def watch(self) -> None:
        """Errors of the devices are told from here on. One that refuses that is not watched."""
        with contextlib.suppress(Exception):
            events = self._nvml.nvmlEventSetCreate()
            for device in self._answering():
                with contextlib.suppress(Exception):
                    self._nvml.nvmlDeviceRegisterEvents(device.handle, self._nvml.nvmlEventTypeXidCriticalError, events)
            before, self._events = self._events, events
            if before is not None:
                self._nvml.nvmlEventSetFree(before)

    def news(self) -> Iterator[Xid]:
        """The errors since the last call, where watch() could be called. A device that no longer answers is lost."""
        while self._events is not None:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except Exception as error:
                if isinstance(error, self._nvml.NVMLError_Timeout) or not (lost := self._newly_lost()):
                    return
                yield from (Xid(device.bus, _LOST_XID, None, str(error)) for device in lost)
                self.watch()  # the others may have news, too
                continue
            # Whose it is, is not asked: a lost device answers no question.
            number = _place(event.device)
            yield from (Xid(d.bus, int(event.eventData)) for d in self._answering() if _place(d.handle) == number)

    def _answering(self) -> list[Device]:
        return [device for device in self.devices if device.handle is not None and device.index not in self._lost]

    def _newly_lost(self) -> list[Device]:
        """The devices that have answered so far, and do so no more."""
        found = []
        for device in self._answering():
            try:
                self._nvml.nvmlDeviceGetMemoryInfo(device.handle)
            except self._nvml.NVMLError_GpuIsLost:
                found.append(device)
            except Exception:
                continue
        self._lost.update(device.index for device in found)
        return found

    def free(self, pids_are_ours: bool) -> bool | None:
        """Whether no dead process holds a device. None if nobody can tell. Where the driver's pids are not ours (in a
        container): whether the memory in use is the same as at the last call."""
        if not (asked := self._answering()):
            return None
        try:
            holders = {device.index: self._holders(device) for device in asked}
            before, self._used = self._used, tuple(map(self._used_of, asked))
            alone = self._nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
            taken = any(
                holders[device.index] and self._nvml.nvmlDeviceGetComputeMode(device.handle) == alone
                for device in asked
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


def are_numbers(words: Sequence[str]) -> bool:
    """Whether devices are named by their numbers in `words`."""
    return all(word.strip().isdecimal() for word in words)


def in_one_order(devices: Sequence[Device], order: str | None) -> bool:
    """Whether a number means the same one of `devices` to CUDA as here. By CUDA_DEVICE_ORDER, `order`, CUDA counts the
    fastest first, or by their addresses, as NVML does."""
    return order == "PCI_BUS_ID" or len({device.name for device in devices if device.name}) < 2


def visible(found: list[Device], told: str | None, order: str | None = None) -> Iterator[Device]:
    """Those of the devices that CUDA_VISIBLE_DEVICES names, by number or by UUID. All if it is not set, or if nobody
    can tell which ones its numbers mean."""
    words = [] if told is None else told.split(",")
    if told is None or (are_numbers(words) and not in_one_order(found, order)):
        yield from found
        return
    for word in map(str.strip, words):
        match = [d for d in found if word == str(d.index) or (len(word) > 4 and d.uuid.startswith(word))]
        if not match:
            return  # CUDA ends the list at the first name that it does not know.
        yield match[0]


def _listed(driver: Path) -> Iterator[Device]:
    """The devices in the driver's files, by their addresses: so NVML counts them, too."""
    for index, folder in enumerate(sorted((driver / "gpus").glob("*"))):
        text = ""
        with contextlib.suppress(OSError):
            text = (folder / "information").read_text(errors="replace")
        uuid, model = _UUID.search(text), _MODEL.search(text)
        yield Device(index, uuid[1] if uuid else "", address(folder.name), name=model[1] if model else "")


def _place(handle: Any) -> int | None:
    """Where a handle of NVML points to. Two handles of one device point to the same place."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
