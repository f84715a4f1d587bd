"""What every benchmark shares: its options, the machine it ran on, statistics, tables, and the JSON beside the
table."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import _supervise  # noqa: F401 (from here on our other names are served)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
"""Where the results that docs/ is drawn from are kept."""

SMALL = ["--n-layer", "2", "--n-head", "2", "--n-embd", "64", "--block-size", "64", "--batch-size", "8"]
"""The small built-in GPT: 0.1 M parameters, 10 to 15 ms a step on two cores."""
MODELS: dict[str, list[str]] = {"small": SMALL, "default": []}
"""Flags of `-m trainer` by the name of the model. The default one has 0.8 M parameters and takes about 85 ms a step."""

T = TypeVar("T")


def options(doc: str | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The command line's, with `more` arguments; a SIGTERM then ends the benchmark as Ctrl-C does, cleaned up."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, settings in more:
        parser.add_argument(name, **settings)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, and the machine")
    parser.add_argument("--seed", type=int, default=None, help="of the random instants and ranks")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return given


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def head(name: str, here: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """What a result begins with: when, where and how it was measured."""
    asked = {key: value for key, value in vars(given).items() if key not in ("json", "svg")}
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"benchmark": name, "date": when, "machine": here, "options": asked}


def write(path: Path | None, name: str, here: dict[str, Any], given: argparse.Namespace, body: dict[str, Any]) -> None:
    """The result is in the file, if one was asked for. `here` is machine(), taken before the benchmark began."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite({**head(name, here, given), **body}), indent=1, allow_nan=False) + "\n")
    print(f"written to {path}", file=sys.stderr)


def _finite(value: Any) -> Any:
    """As JSON has it: null for what was not measured."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; nan of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def summary(values: Sequence[float]) -> dict[str, float]:
    """min, p50, p95, max of the samples, and how many there are."""
    if not values:
        return {"n": 0, "min": math.nan, "p50": math.nan, "p95": math.nan, "max": math.nan}
    middle = statistics.median(values)
    return {"n": len(values), "min": min(values), "p50": middle, "p95": percentile(values, 0.95), "max": max(values)}


def at_least(found: int, of: int, sure: float = 0.975) -> float:
    """The share that is surely there if `found` of so many samples showed it: the lower end of Clopper and Pearson's
    interval, of 95 % on both sides together."""
    if found == 0:
        return 0.0
    low, high = 0.0, found / of
    for _ in range(60):
        share = (low + high) / 2
        # How likely so many are, or more, with this share.
        tail = sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(found, of + 1))
        low, high = (share, high) if tail < 1 - sure else (low, share)
    return low


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns, the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [[f"{cell:<{widths[0]}}" for cell in line[:1]] for line in lines]
    for line, cells in zip(lines, padded, strict=True):
        cells += [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
    first, *rest = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([first, "─" * (sum(widths) + 2 * (len(widths) - 1)), *rest])


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{title}\n\n{table(head, rows)}", flush=True)


def foreign(seconds: float = 0.5) -> float:
    """The share of all cores that somebody uses now. Asked while nothing of a benchmark runs."""
    busy, idle = _cores()
    time.sleep(seconds)
    later_busy, later_idle = _cores()
    return (later_busy - busy) / max(1, later_busy - busy + later_idle - idle)


def _cores() -> tuple[int, int]:
    """Ticks of all cores: in use, and idle."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, idle


def say(text: str) -> None:
    """How far it is, for people who wait."""
    print(f"  {text}", file=sys.stderr, flush=True)


def until(what: Callable[[], T | None], seconds: float, text: str, every: float = 0.05) -> T:
    """The first value of `what` that is there; TimeoutError with `text` after `seconds`.

    Polled rarely, so as not to disturb: the times that count are in the records, not taken here.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value is not None and value is not False:
            return value
        time.sleep(every)
    raise TimeoutError(f"{text}: not within {seconds:.0f} s")
