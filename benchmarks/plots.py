"""Draws docs/*.svg from the JSON of the benchmarks: goodput against the failure rate, recovery by component, growth.

python benchmarks/plots.py [--results benchmarks/results] [--out docs]

It reads recovery.json, script_recovery.json, goodput.json and growth.json in the results' folder, and draws what is
there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import svg
from common import RESULTS, ROOT
from kills import COMPONENTS

PEER = "kill to first step, all in one"


def machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    cpu = f"{machine['cores']} cores of {machine['cpu'] or 'an unnamed CPU'}"
    return f"{cpu}, no GPU, torch {machine['torch']}, Python {machine['python']}, {result['date'][:10]}"


def recovery(result: dict[str, Any], path: Path, what: str) -> None:
    """Medians. torchrun tells no components, so its bar is one piece."""
    rows: list[tuple[str, list[tuple[str, float, str]]]] = []
    for name, seconds in result["seconds"].items():
        parts = result["components"].get(name)
        if parts is None:
            rows.append((name, [(PEER, seconds["p50"], svg.OTHERS)]))
            continue
        # Medians of parts do not add up to the median of the whole; they are scaled to it.
        scale = seconds["p50"] / sum(parts[component]["p50"] for component in COMPONENTS)
        pairs = zip(COMPONENTS, svg.PALETTE, strict=False)
        bars = [(part, parts[part]["p50"] * scale, colour) for part, colour in pairs]
        rows.append((name, [bar for bar in bars if bar[1] > 0]))
    kills = max(seconds["n"] for seconds in result["seconds"].values())
    title = f"SIGKILL of a rank to the first new step: {what}"
    subtitle = f"Median of {kills} kills a side, {result['nproc']} ranks. {machine_line(result)}"
    svg.stacked(path, title, subtitle, "seconds", rows)


def components(result: dict[str, Any], path: Path) -> None:
    """Where supervise's own time goes, in milliseconds."""
    parts = result["components"]["supervise"]
    pairs = zip(COMPONENTS, svg.PALETTE, strict=False)
    rows = [(part, [(part, 1000 * parts[part]["p50"], colour)]) for part, colour in pairs]
    whole = (
        f"Medians of {parts['detect']['n']} kills; all of it {1000 * result['seconds']['supervise']['p50']:.0f} ms. "
    )
    svg.stacked(path, "Recovery by component", whole + machine_line(result), "milliseconds", rows, 0)


def goodput(result: dict[str, Any], path: Path) -> None:
    colours = {"supervise": svg.PALETTE[0], "torchrun": svg.OTHERS}
    names = {"torchrun": "torchrun, saving every 20 steps as the tutorial does"}
    groups: dict[float, list[tuple[str, float, str]]] = {}
    for sample in result["summary"]:
        bar = (names.get(sample["side"], sample["side"]), 100 * sample["goodput"]["p50"], colours[sample["side"]])
        groups.setdefault(sample["every_s"], []).append(bar)
    rows = [(f"every {every:g} s", bars) for every, bars in sorted(groups.items())]
    rounds = f"Medians of {result['options']['rounds']} rounds"
    subtitle = f"{rounds}; 100 %: no failures, no saves, nobody supervises. {machine_line(result)}"
    axes = ("a random rank is killed", "goodput, %")
    svg.grouped(path, "Goodput against the failure rate", subtitle, axes, rows, "%")


def growth(result: dict[str, Any], path: Path) -> None:
    """Medians by component, a bar for each size of each kind."""
    rows: list[tuple[str, list[tuple[str, float, str]]]] = []
    for what in ("ranks", "state", "processes", "events"):
        for one in result.get(what, {}).get("sizes", ()):
            told = [sample["components"] for sample in one["samples"] if sample.get("components")]
            parts = {part: statistics.median(each[part] for each in told) for part in COMPONENTS} if told else {}
            scale = one["seconds"]["p50"] / sum(parts.values()) if parts else 0.0
            bars = [(part, parts[part] * scale, svg.PALETTE[n]) for n, part in enumerate(COMPONENTS) if part in parts]
            unit = " MB" if what == "state" else ""
            rows.append((f"{what} {one['size']:,}{unit}", bars))
    kills = result["options"]["kills"]
    svg.stacked(
        path,
        "SIGKILL of a rank to the first new step, as a run grows",
        f"Medians of {kills} kills of each run. {machine_line(result)}",
        "seconds",
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    drawers: dict[str, tuple[str, Callable[[dict[str, Any], Path], None]]] = {
        "recovery": ("recovery", lambda result, path: recovery(result, path, "the built-in GPT")),
        "recovery-components": ("recovery", components),
        "script-recovery": ("script_recovery", lambda result, path: recovery(result, path, "an unchanged script")),
        "goodput": ("goodput", goodput),
        "growth": ("growth", growth),
    }
    for name, (benchmark, draw) in drawers.items():
        source, target = given.results / f"{benchmark}.json", given.out / f"{name}.svg"
        if source.exists():
            draw(json.loads(source.read_bytes()), target)
            print(target)
        else:
            print(f"no {source}: no {target.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
