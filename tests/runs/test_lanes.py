"""What a rank of a script that knows nothing of us did, second by second."""

from __future__ import annotations

import time

from supervisor.live.lanes import parts
from tests.support.supervised import Run
from tests.support.waiting import until

EVALUATES = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
net = torch.nn.Linear(4, 4)
model = torch.nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
for step in range(40):
    model(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
    time.sleep(0.02)
    if step == 20 and dist.get_rank() == 0:
        net.eval()
        while not os.path.exists("seen"):
            net(torch.randn(2, 4))
            time.sleep(0.001)
        net.train()
dist.destroy_process_group()
"""


def test_a_rank_that_evaluates(run: Run) -> None:
    """It is seen to do so, from its model's eval() to its next step; the other one waits."""
    run.start("--nproc", "2", run.script(EVALUATES))
    both = {(0, "evaluating"), (1, "waiting")}

    def long(least: float) -> set[tuple[int, str]]:
        # A rank that gets no CPU for a moment may leave the stretch, and begin another one.
        now = time.monotonic()
        return {(part.rank, part.kind.word) for part in parts(run.dir) if min(part.end, now) - part.begin > least}

    # One that nobody has seen the end of may be over already.
    until(lambda: both <= long(2.0))
    (run.folder / "seen").touch()
    assert run.wait() == 0, run.warnings()
    assert both <= long(1.0), parts(run.dir)
    run.cli("report", str(run.dir.path), "--html", "page.html")
    page = (run.folder / "page.html").read_text()
    assert "rank 0: evaluating, " in page and "rank 1: waiting, " in page
