"""Scripts for tests of real runs: they know nothing of what supervises them."""

from __future__ import annotations

import contextlib
from pathlib import Path

STEPPING = """
import os, sys, time, torch
steps, pause = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(steps):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(pause)
"""
"""Arguments: how many steps, and how many seconds each sleeps."""
PACED = """
import contextlib, itertools, os, runpy, time
from torch.optim.optimizer import register_optimizer_step_post_hook

count = itertools.count(1)

def pause(*_):
    made = next(count)
    with contextlib.suppress(FileNotFoundError):
        time.sleep(float(open("pace").read() or 0))
    with contextlib.suppress(FileNotFoundError):
        while made >= int(open("hold").read() or 0):
            time.sleep(0.01)

register_optimizer_step_post_hook(pause)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""
"""The built-in trainer, each step of which takes as many seconds more as the file `pace` says. While there is a file
`hold`, no process of it gets past as many steps as that says."""
HELD = """
import os, runpy, select, signal
from torch.optim.optimizer import register_optimizer_step_post_hook

told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.set_wakeup_fd(tell)

def hold(optimizer, *_):
    done = max(int(state["step"]) for state in optimizer.state.values())
    while here := [name for name in os.listdir() if name.startswith("hold-") and done >= int(name[5:])]:
        open("held-" + here[0][5:], "w").close()
        if select.select([told], [], [], 0.01)[0]:
            break

register_optimizer_step_post_hook(hold)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""
"""The built-in trainer, in which a rank that has done N steps waits as long as a file `hold-N` is there, or until it
gets a signal. Where it does, there is a file `held-N`."""
FOREVER = "import time\nopen('up', 'a').write('x')\nwhile True: time.sleep(0.05)"
PRINTS = """
import os, time
for step in range(10_000):
    print("step", step, "x" * 2000)
    with open("../step.new", "w") as file:
        file.write(str(step))
    os.replace("../step.new", "../step")
    time.sleep(0.01)
    if os.path.exists("../fail"):
        raise ValueError("in my own words")
    if os.path.exists("../finish"):
        break
"""
"""Started in a folder below its run's: prints until the file `finish` or `fail` is there, its step in the file
`step`."""


def printed(folder: Path) -> int:
    """The step that PRINTS is at, started below `folder`; -1 before the first."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "step").read_text())
    return -1


SAVES_ON_TERM = """
import os, signal, sys, time
rank = os.environ["RANK"]
def stop(*_):
    open("terms" + rank, "a").write("x")
    time.sleep(0.3 + float(sys.argv[1]) * int(rank))
    open("saved" + rank, "w")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
open("up" + rank, "w")
while True:
    time.sleep(0.05)
"""
"""A script that counts its TERMs and takes its time to save at each, rank 1 by its argument in seconds longer."""
