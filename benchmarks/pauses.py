"""No false verdict: healthy programs that stand still for minutes, each in its own way, all at once.

python benchmarks/pauses.py [--scale 1.0] [--kinds evaluation upload …] [--json FILE]

One rank of two pauses (scripts/pausing.py), the limits are `auto`. Nothing is wrong, so every verdict but the last is
false. With `--scale 0.1` each pause is a tenth as long.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, machine, options, say, show, write

from supervisor.reading.events_file import read_events

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SCRIPT = ROOT / "benchmarks" / "scripts" / "pausing.py"
SECONDS = {
    "evaluation": 360.0,
    "upload": 180.0,
    "compilation": 120.0,
    "slow_disk": 180.0,
    "first_batch": 240.0,
    "debugger": 180.0,
    "retry": 240.0,
}


def launch(folder: Path, kind: str, seconds: float) -> subprocess.Popen[bytes]:
    folder.mkdir()
    command = [SUPERVISE, "launch", "--quiet", "--run-dir", "run", "--nproc", "2", str(SCRIPT), kind, str(seconds)]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


def main() -> None:
    given = options(
        __doc__,
        ("--scale", {"type": float, "default": 1.0}),
        ("--kinds", {"nargs": "+", "choices": list(SECONDS), "default": list(SECONDS)}),
    )
    here = machine()
    found = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        pauses = {kind: given.scale * SECONDS[kind] for kind in given.kinds}
        runs = {kind: launch(Path(name) / kind, kind, seconds) for kind, seconds in pauses.items()}
        for kind, run in runs.items():
            code = run.wait()
            events = read_events(Path(name) / kind / "run" / "events.jsonl")[0]
            false = [e["reason"] for e in events if e["msg"] == "verdict" and e["cause"] != "finished"]
            found[kind] = {"seconds": pauses[kind], "exit_code": code, "false": false}
            say(f"{kind}: {len(false)} false verdicts, exit code {code}")
    show(
        "healthy pauses",
        ("pause", "seconds", "false verdicts", "exit code"),
        [(kind, each["seconds"], len(each["false"]), each["exit_code"]) for kind, each in found.items()],
    )
    wrong = [kind for kind, each in found.items() if each["false"] or each["exit_code"]]
    for kind in wrong:
        print(f"false: {kind}: {found[kind]['false']}")
    write(given.json, "pauses", here, given, {"pauses": found, "verdicts": len(wrong)})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
