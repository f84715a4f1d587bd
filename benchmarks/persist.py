"""Bytes per second until a snapshot is durable: the flush, digest included, against dd with its own fdatasync and
others.

python benchmarks/persist.py [--mb 1024] [--ranks 2] [--rounds 5] [--folder DIR] [--json FILE]

Each round runs every way once, one after another, so that all of them meet the same disk. dd writes the same bytes from
the same shared memory. The ratio is taken within a round; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from states import nested, snapshot_of

from trainer.checkpoint.memory import snapshots
from trainer.rundir.machine.shm import segment_of
from trainer.rundir.programs import program

FLUSH = program("checkpoint.disk.flush")


def _sync_tree(path: Path) -> None:
    subprocess.run(["sync", "--file-system", str(path)], check=True)


def _flush(segment: Path, out: Path) -> float:
    command = [sys.executable, *FLUSH, str(segment), str(out), "--step", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def _timed(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def _dd(source: Path, out: Path) -> float:
    out.mkdir()
    command = ["dd", f"if={source}", f"of={out / 'file'}", "bs=1M", "conv=fdatasync", "status=none"]
    return _timed(lambda: subprocess.run(command, check=True))


def _torch_save(state: Any, out: Path) -> float:
    out.mkdir()

    def save() -> None:
        with (out / "file").open("wb") as file:
            torch.save(state, file)
        _sync_tree(out / "file")

    return _timed(save)


def _dcp_save(state: Any, out: Path) -> float:
    def save() -> None:
        dcp.save(state, checkpoint_id=out, no_dist=True)
        _sync_tree(out)

    return _timed(save)


def measure(mb: int, ranks: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each way, by round."""
    state = nested(mb)
    segment = segment_of("benchmark-persist")
    times: dict[str, list[float]] = {}
    try:
        snapshot_of(state, segment, ranks)
        source = folder / "source"
        # dd reads what the flush reads: pages that are in memory already.
        with (segment / "dd").open("wb") as file:
            file.truncate(0)
            for rank in range(ranks):
                found = snapshots.find(segment)
                assert found is not None
                file.write(found.path(rank).read_bytes()[: found.record(rank).payload])
        source = segment / "dd"
        ways: dict[str, Callable[[Path], float]] = {
            "dd conv=fdatasync": lambda out: _dd(source, out),
            "flush": lambda out: _flush(segment, out),
            "torch.save + sync": lambda out: _torch_save(state, out),
            "DCP save + sync": lambda out: _dcp_save(state, out),
        }
        for number in range(rounds):
            for name, way in ways.items():
                out = folder / f"{number}-{name.split()[0]}"
                times.setdefault(name, []).append(way(out))
                shutil.rmtree(out)
                subprocess.run(["sync"], check=True)
    finally:
        snapshots.remove(segment)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        times = measure(options.mb, options.ranks, options.rounds, Path(folder))
    base = times["dd conv=fdatasync"]
    rows = {}
    print(f"{options.mb} MB of state, {options.ranks} ranks, {options.rounds} rounds: median (worst)")
    for name, seconds in times.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        rows[name] = {"seconds": seconds, "mb_per_s": options.mb / statistics.median(seconds), "of_dd": ratio}
        print(
            f"  {name:20}{statistics.median(seconds):7.2f} s ({max(seconds):.2f}){rows[name]['mb_per_s']:8.0f} MB/s   "
            f"{ratio:.2f} x dd"
        )
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "folder": None, "json": None, "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
