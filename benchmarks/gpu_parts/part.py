"""What the parts share: where their results go, the device, and what stands in for it when they are tried on a CPU."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "benchmarks" / "scripts"


class Part:
    """A part's results. What is put is on the disk at once, so a part that is cut off leaves it.
    `told` is for people."""

    def __init__(self, out: Path, device: str, quick: bool) -> None:
        self.out, self.quick, self.device = out, quick, torch.device(device)
        self.real = device == "cuda"
        self.slack = 1 if self.real else 5
        """By how much limits of time are stretched: whoever tries this on a CPU has no machine of its own."""
        self.cuda: Any = torch.cuda if self.real else NoCuda()
        self.found: dict[str, Any] = {}
        if self.real and not torch.cuda.is_available():
            self.put("no_gpu", True)
            sys.exit(2)

    def put(self, key: str, value: Any) -> None:
        self.found[key] = value
        self.out.write_text(json.dumps(self.found, default=str))

    def tell(self, key: str, value: object) -> None:
        self.put("told", {**self.found.get("told", {}), key: str(value)})
        print(f"{key}: {value}", flush=True)

    @contextlib.contextmanager
    def trying(self, key: str) -> Iterator[None]:
        """An exception inside is kept as an error of the part, and the part goes on."""
        began = time.monotonic()
        try:
            yield
        except Exception:
            text = traceback.format_exc()
            self.put("errors", {**self.found.get("errors", {}), key: text[-4000:]})
            print(text, flush=True)
        self.put("took_s", {**self.found.get("took_s", {}), key: round(time.monotonic() - began, 2)})

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds until `action` is done on the device, too."""
        self.cuda.synchronize()
        began = time.perf_counter()
        action()
        self.cuda.synchronize()
        return time.perf_counter() - began


def spread(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {"n": 0}
    ms = sorted(1000 * s for s in seconds)
    return {
        "n": len(ms),
        "mean": round(statistics.fmean(ms), 3),
        "p50": round(statistics.median(ms), 3),
        "p95": round(ms[min(len(ms) - 1, int(0.95 * len(ms)))], 3),
        "max": round(ms[-1], 3),
    }


class _Done:
    """A stream or event of a device that does everything at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    synchronize = wait_event = wait_stream = record


class NoCuda:
    """In place of torch.cuda while a part is tried on a CPU: everything is done at once."""

    Stream = Event = _Done

    def synchronize(self, device: Any = None) -> None:
        pass

    def current_stream(self, device: Any = None) -> _Done:
        return _Done()

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def empty_cache(self) -> None:
        pass

    def max_memory_reserved(self) -> int:
        return 0
