"""What it costs a rank that its own torch.save is written beside and renamed, and told in its journal.

    asked    torch.save as torch has it, over the old file
    plain    through our wrapper under --plain-saves: told in the journal, written over the old file
    beside   through our wrapper: told, written beside, renamed

One supervised rank saves in turns, asked plain beside asked plain beside …, so that all three see the same machine. A
save of 400 MB, and (--small) one of 4 MB; the figure is the median of the rank's wall time in a save, and of the
difference in a round.

python benchmarks/own_saves.py [--rounds 15] [--mb 400] [--small 200] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common

RANK = """
import json, sys, time, torch
from _supervise.rank.journal import wrapping
sizes, gap = json.loads(sys.argv[1]), float(sys.argv[2])
tag, asked = wrapping.tag(), torch.save.__wrapped__
assert tag, "the saves of this rank are not protected"
ways = {"asked": (asked, tag), "plain": (torch.save, ""), "beside": (torch.save, tag)}
# A step, so that what is saved counts as progress.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).step()
for megabytes, rounds in sizes:
    state = {"w": torch.zeros(megabytes * 250_000)}
    for number in range(-1, rounds):
        for name, (save, wrapping._tag) in ways.items():
            time.sleep(gap if megabytes > 4 else 0)
            began, used = time.perf_counter(), time.process_time()
            save(state, f"{name}.pt")
            line = [megabytes, name, time.perf_counter() - began, time.process_time() - used]
            if number >= 0:
                print("took", json.dumps(line), flush=True)
"""


def measured(folder: Path, sizes: list[tuple[int, int]], gap: float) -> list[tuple[int, str, float, float]]:
    """Of each save, in their order: megabytes, the way, seconds of the clock, seconds of the processor."""
    (folder / "rank.py").write_text(RANK)
    command = [str(Path(sys.executable).with_name("supervise")), "launch", "--quiet", "--run-dir", "runs"]
    subprocess.run([*command, "--no-standby", "--", "rank.py", json.dumps(sizes), str(gap)], cwd=folder, check=True)
    (log,) = folder.glob("runs/**/rank0.log")
    return [tuple(json.loads(line[5:])) for line in log.read_text().splitlines() if line.startswith("took ")]


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--rounds", {"type": int, "default": 15}),
        ("--mb", {"type": int, "default": 400}),
        ("--small", {"type": int, "default": 200, "help": "rounds of 4 MB"}),
        ("--gap", {"type": float, "default": 2.0, "help": "seconds before each large save: saves follow no saves"}),
        ("--dir", {"type": Path, "default": None, "help": "a folder on the disk to measure"}),
    )
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        saves = measured(Path(folder), [(given.mb, given.rounds), (4, given.small)], given.gap)
    found = {}
    print("MB   way       median    processor   more than asked, median of a round")
    for size in (given.mb, 4):
        times = {way: [s for mb, w, s, _ in saves if (mb, w) == (size, way)] for way in ("asked", "plain", "beside")}
        busy = {way: [c for mb, w, _, c in saves if (mb, w) == (size, way)] for way in times}
        usual = statistics.median(times["asked"])
        for way, seconds in times.items():
            more = statistics.median(a - b for a, b in zip(seconds, times["asked"], strict=True))
            cpu = statistics.median(a - b for a, b in zip(busy[way], busy["asked"], strict=True))
            median, processor = statistics.median(seconds), statistics.median(busy[way])
            row = f"{size:<4} {way:8}{median * 1e3:8.2f} ms {processor * 1e3:8.2f} ms"
            print(f"{row} {more * 1e3:+9.2f} ms {more / usual:+7.1%}  processor {cpu * 1e3:+.2f} ms")
            found[f"{size} MB {way}"] = {"seconds": seconds, "cpu_seconds": busy[way], "more_s": more}
    common.write(given.json, "own_saves", here, given, {"saves": found})


if __name__ == "__main__":
    main()
