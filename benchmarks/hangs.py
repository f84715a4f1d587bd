"""How long a hang stays unseen: from the moment rank 1 gets stuck to the verdict, by the way in which it is stuck.

python benchmarks/hangs.py [--rounds 5] [--step 0.05] [--kinds stop lock …] [--json FILE]

The script is unmodified (scripts/hanging.py) and the limits are `auto`, but for the kinds of which only a limit can
tell: an endless loop, a regular expression, a read and a DataLoader worker that never come back have `--hang-timeout
1500ms`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, machine, options, say, show, summary, write

from supervisor.reading.events_file import read_events

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SCRIPT = ROOT / "benchmarks" / "scripts" / "hanging.py"
KINDS = {"stop": "auto", "lock": "auto", "beside": "auto", "skip": "auto"} | dict.fromkeys(
    ("gil", "loop", "fifo", "worker"), "1500ms"
)


def once(kind: str, step: float) -> dict[str, Any]:
    """One run with one hang: seconds to the verdict, and what the verdict says."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        os.mkfifo(here / "fifo")
        command = [SUPERVISE, "launch", "--quiet", "--run-dir", "run", "--nproc", "2", "--hang-timeout", KINDS[kind]]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, str(SCRIPT), kind, str(step)], cwd=here, env=env, check=True)
        verdicts = [event for event in read_events(here / "run" / "events.jsonl")[0] if event["msg"] == "verdict"]
        first = verdicts[0]
        took = first["mono"] - float((here / "struck").read_text())
        right = [v["cause"] for v in verdicts] == ["stopped" if kind == "stop" else "hang", "finished"]
        return {"seconds": took, "right": right, "rank": first["rank"], "reason": first["reason"]}


def main() -> None:
    given = options(
        __doc__,
        ("--rounds", {"type": int, "default": 5}),
        ("--step", {"type": float, "default": 0.05, "help": "seconds that a step sleeps"}),
        ("--kinds", {"nargs": "+", "choices": list(KINDS), "default": list(KINDS)}),
    )
    here = machine()
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in given.kinds:
        for number in range(given.rounds):
            found.setdefault(kind, []).append(once(kind, given.step))
            say(f"{kind} {number + 1} of {given.rounds}: {found[kind][-1]['seconds']:.2f} s")
    times = {kind: summary([each["seconds"] for each in rounds]) for kind, rounds in found.items()}
    rows = [
        (
            kind,
            KINDS[kind],
            f"{times[kind]['p50']:.2f} s",
            f"{times[kind]['max']:.2f} s",
            f"{sum(each['right'] for each in rounds)} of {len(rounds)}",
            f"{sum(each['rank'] == 1 for each in rounds)} of {len(rounds)}",
        )
        for kind, rounds in found.items()
    ]
    title = f"from stuck to verdict, steps of {given.step:g} s"
    show(title, ("stuck in", "limit", "p50", "max", "one hang seen", "rank named"), rows)
    write(given.json, "hangs", here, given, {"times": times, "rounds": found})


if __name__ == "__main__":
    main()
