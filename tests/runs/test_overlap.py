"""No code of an attempt runs when the next one's begins, though its memory may still be there."""

from __future__ import annotations

import struct
from itertools import pairwise

from tests.support.supervised import Run

TICKING = """
import mmap, os, struct, threading, time
began = time.monotonic_ns()
import torch
name = "clock.{SUPERVISE_ATTEMPT}.{RANK}".format(**os.environ)
with open(name, "wb+") as file:
    file.truncate(4096)
    clock = mmap.mmap(file.fileno(), 4096)
struct.pack_into("q", clock, 0, began)

def tick():
    while True:
        struct.pack_into("q", clock, 8, time.monotonic_ns())
        time.sleep(0.0002)

threading.Thread(target=tick, daemon=True).start()
if os.fork() == 0:  # a child that outlives the rank, and writes too
    struct.pack_into("q", clock, 24, os.getpid())
    while True:
        struct.pack_into("q", clock, 16, time.monotonic_ns())
        time.sleep(0.0002)
heavy = bytearray(b"x") * (150 << 20)
open(name.replace("clock", "begun"), "w").close()
while not all(os.path.exists("begun.{}.{}".format(os.environ["SUPERVISE_ATTEMPT"], rank)) for rank in (0, 1)):
    time.sleep(0.001)
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(12):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.01)
child = struct.unpack_from("q", clock, 24)[0]
if child:
    os.kill(child, 9)
"""


def test_the_last_instant_of_one_is_before_the_first_of_the_next(run: Run) -> None:
    kills = ["--inject", "kill:rank=1@step=3", "--inject", "kill:rank=0@step=7"]
    assert run.launch("--nproc", "2", *kills, run.script(TICKING)) == 0

    clocks = [
        [struct.unpack("4q", (run.folder / f"clock.{attempt}.{rank}").read_bytes()[:32]) for rank in (0, 1)]
        for attempt in run.dir.attempts()
    ]
    assert len(clocks) > 1  # both ranks may be killed in one attempt
    for old, new in pairwise(clocks):
        assert max(last for _, *instants, _ in old for last in instants) < min(began for began, *_ in new)
