"""Versions, the device, and raw rates: what everything else is measured against."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .part import Part, spread

_PACKAGES = (
    "torch",
    "supervise",
    "msgspec",
    "xxhash",
    "safetensors",
    "structlog",
    "psutil",
    "py-spy",
    "triton",
    "numpy",
)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    """What nvidia-smi says of the device, or why it says nothing."""
    asked = "name,driver_version,memory.total,memory.used,compute_mode,mig.mode.current"
    asked += ",pcie.link.gen.current,ecc.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return repr(error)
    return done.stdout + done.stderr


def measure(part: Part) -> None:
    part.put("packages", {name: _version(name) for name in _PACKAGES})
    part.put("python", platform.python_version())
    part.put("cores", len(os.sched_getaffinity(0)))
    part.put("memory_gb", round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1))
    shm = os.statvfs("/dev/shm")
    part.put("shm_free_gb", round(shm.f_bavail * shm.f_frsize / 1e9, 1))
    part.put("tmp", tempfile.gettempdir())
    part.put("kernel", platform.release())
    part.put("nvidia_smi", _driver())
    if part.real:
        with part.trying("device"):
            _device(part)
    with part.trying("copies"):
        _copies(part, (2 << 30) if part.real else (1 << 20))
    with part.trying("small copies"):
        _small(part)


def _device(part: Part) -> None:
    began = time.perf_counter()
    torch.zeros(1, device=part.device)
    part.put("context_s", time.perf_counter() - began)
    a = torch.randn(512, 512, device=part.device)
    part.put("first_matmul_s", part.timed(lambda: a @ a))
    about: Any = torch.cuda.get_device_properties(0)
    part.put("device", {name: str(getattr(about, name)) for name in dir(about) if not name.startswith("_")})
    part.put("free_and_total", torch.cuda.mem_get_info())
    part.put("nccl", torch.cuda.nccl.version())
    part.tell("GPU", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")


def _copies(part: Part, size: int) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        memory = mmap.mmap(file.fileno(), size)
        host = torch.frombuffer(memory, dtype=torch.uint8)
        device = torch.zeros(size, dtype=torch.uint8, device=part.device)
        rates: dict[str, Any] = {"bytes": size}
        rates["touch_s"] = part.timed(lambda: host.fill_(0))
        rates["d2h_pageable_s"] = part.timed(lambda: host.copy_(device))
        if part.real:
            runtime: Any = torch.cuda.cudart()
            rates["register_s"] = part.timed(
                lambda: rates.update(rc=int(runtime.cudaHostRegister(host.data_ptr(), size, 0)))
            )
        rates["d2h_s"] = min(part.timed(lambda: host.copy_(device, non_blocking=True)) for _ in range(4))
        rates["h2d_s"] = min(part.timed(lambda: device.copy_(host, non_blocking=True)) for _ in range(4))
        other = torch.empty_like(device)
        rates["d2d_s"] = min(part.timed(lambda: other.copy_(device)) for _ in range(4))
        for mb in (1, 4, 16, 64):
            rates[f"d2h_in_{mb}_mb_s"] = min(
                part.timed(lambda m=mb: _in_chunks(part, host, device, m << 20, 1)) for _ in range(2)
            )  # type: ignore[misc]
            rates[f"d2h_in_{mb}_mb_two_s"] = min(
                part.timed(lambda m=mb: _in_chunks(part, host, device, m << 20, 2)) for _ in range(2)
            )  # type: ignore[misc]
        if part.real:
            rates["unregister_s"] = part.timed(lambda: runtime.cudaHostUnregister(host.data_ptr()))
        part.put("rates", rates)
        part.tell("D2H, H2D, D2D", ", ".join(f"{size / rates[k] / 1e9:.1f} GB/s" for k in ("d2h_s", "h2d_s", "d2d_s")))


def _in_chunks(part: Part, host: torch.Tensor, device: torch.Tensor, size: int, ahead: int) -> None:
    """Each chunk is issued when that `ahead` before it is done."""
    side = part.cuda.Stream()
    events = [part.cuda.Event(blocking=True) for _ in range(ahead)]
    with part.cuda.stream(side):
        for number, start in enumerate(range(0, host.numel(), size)):
            event = events[number % ahead]
            event.synchronize()
            host[start : start + size].copy_(device[start : start + size], non_blocking=True)
            event.record(side)
    side.synchronize()


def _small(part: Part) -> None:
    """What a loop pays for reading one number, with nothing else on the device."""
    one = torch.ones(1, device=part.device)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        (one + 1).item()
        times.append(time.perf_counter() - began)
    part.put("item_ms", spread(times))
