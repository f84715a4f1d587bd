"""Draws docs/*.svg from the JSON of the benchmarks: goodput against the failure rate, recovery by component, growth.

python benchmarks/plots.py [--results benchmarks/results] [--out docs]

It reads recovery.json, script_recovery.json, goodput.json and growth.json in the results' folder, and draws what is
there.
"""

from __future__ import annotations

import argparse
import json
import math
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
    count = result["options"]["rounds"]
    rounds = f"Medians of {count} rounds" if count > 1 else "One run of each"
    subtitle = f"{rounds}; 100 %: no failures, no saves, nobody supervises. {machine_line(result)}"
    axes = ("a random rank is killed", "goodput, %")
    svg.grouped(path, "Goodput against the failure rate", subtitle, axes, rows, "%")


GROWN = {"ranks": "ranks", "state": "MB of state", "processes": "other processes", "events": "events of the run"}
"""What a run can have more of, and the unit of its axis."""


def growth(result: dict[str, Any], path: Path) -> None:
    """Medians against each size, with the least and the most, in logarithmic axes."""
    shown = []
    for what, unit in GROWN.items():
        sizes = [one for one in result.get(what, {}).get("sizes", ()) if one["seconds"]["n"]]
        points = [(float(one["size"]), *(one["seconds"][key] for key in ("min", "p50", "max"))) for one in sizes]
        slopes = [(said, result[what][key]) for said, key in SLOPES.items() if points]
        title = ", ".join([what, *(f"{said} {value:.2f}" for said, value in slopes if value and math.isfinite(value))])
        shown += [svg.Panel(title, unit, points)] if points else []
    title = "SIGKILL of a rank to the first new step, as a run grows"
    kills = result["options"]["kills"]
    if shown:
        svg.panels(path, title, f"Medians of {kills} kills of each run. {machine_line(result)}", "seconds", shown)


SLOPES = {"slope": "slope", "of the upper half": "slope_of_the_upper_half"}
"""The slopes of a growth, as people and as its JSON name them."""


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
