"""Everything that a GPU must show, on one of them: 10 minutes, or 4 with --quick. Needs no setting.

    environment   versions, the device, raw copy rates, registering and touching shared memory
    large         302 M parameters under supervise: steps without and with snapshots, kill -> first step
    recovery      kill -> first step of the built-in GPT and of an unchanged script, against torchrun; bits at the end
    correctness   the bits of snapshots, generators, GradScaler, FSDP2, channels_last, digests, CUDA graphs, streams
    copies        302 M parameters: what a snapshot costs a step; without --quick, by all ways of copying
    faults        assert, illegal access, no memory, a kernel without end: cause, times, and what the rank said

python benchmarks/gpu.py [--quick] [--out FILE] [--only PART,…]

Each part is a process of its own with a limit of its own. The file is written again after each part, so a run that is
cut off leaves what it had. Without a GPU: one line, and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MARK = "BENCH_GPU"
PARTS = {
    "environment": (30, 60),
    "large": (90, 150),
    "copies": (45, 110),
    "recovery": (90, 220),
    "correctness": (40, 110),
    "faults": (60, 90),
}
"""Seconds that a part may take: with --quick, and without."""
NO_GPU = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all results, as JSON")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,…", help="these parts")
    # For developers: the program itself is tried on the CPU, with small sizes. Its figures then mean nothing.
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        importlib.import_module(f"gpu_parts.{given.part}").measure(_part(given))
        return 0
    unknown = sorted(set(given.only.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return _all(given)


def _part(given: argparse.Namespace) -> Any:
    from gpu_parts.part import Part

    return Part(given.out, given.device, given.quick)


def _all(given: argparse.Namespace) -> int:
    began, results = time.monotonic(), dict[str, Any]()
    for name in PARTS:
        if name not in given.only.split(","):
            continue
        found = results[name] = _one(name, given)
        if found.get("exit") == NO_GPU and found.get("no_gpu"):
            print("benchmarks/gpu.py: torch sees no GPU here, and there is nothing to measure", file=sys.stderr)
            return NO_GPU
        print(f"── {name}: {found['ended']} in {found['seconds']:.1f} s", file=sys.stderr, flush=True)
        if given.out:
            text = json.dumps(
                {"quick": given.quick, "seconds": round(time.monotonic() - began, 1), **results}, indent=1
            )
            given.out.parent.mkdir(parents=True, exist_ok=True)
            fresh = given.out.with_name(given.out.name + ".new")
            fresh.write_text(text + "\n")
            fresh.replace(given.out)
    for name, found in results.items():
        _print(name, found)
    return int(any(found["ended"] != "whole" for found in results.values()))


def _one(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What that part has found, how it ended, and what it said if that was not well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        out, said = Path(folder, "found.json"), Path(folder, "said")
        command = [sys.executable, __file__, "--part", name, "--out", str(out), "--device", given.device]
        with said.open("wb") as output:
            process = subprocess.Popen(
                [*command, *(["--quick"] if given.quick else [])],
                cwd=folder,
                env={**os.environ, MARK: folder, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code: int | None = process.wait(PARTS[name][not given.quick] * (1 if given.device == "cuda" else 5))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process, folder)
        found = json.loads(out.read_bytes()) if out.exists() else {}
        ended = "whole" if code == 0 and not found.get("errors") else "cut off" if code is None else "with errors"
        head = {"ended": ended, "exit": code, "seconds": round(time.monotonic() - began, 2)}
        if ended != "whole":
            found["said"] = said.read_text(errors="replace")[-6000:]
        return {**head, **found}


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """Nothing that the part has started is left: not it, nor what left its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(50):
        left = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and _is_of(path, folder)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _is_of(process: Path, folder: str) -> bool:
    try:
        return f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _print(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name} ({found['ended']}, {found['seconds']:.0f} s)")
    for key, value in found.get("told", {}).items():
        print(f"  {key:58} {value}")
    for key, text in found.get("errors", {}).items():
        print(f"  {key}: FAILED: {text.strip().splitlines()[-1]}")


if __name__ == "__main__":
    sys.exit(main())
