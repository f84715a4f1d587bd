"""What other processes of a rank are to tidy up when it is killed: they get the time for it, and not more."""

from __future__ import annotations

from pathlib import Path

from supervisor.process.proctree import living
from tests.support.supervised import Run

SHARING = """
import multiprocessing, os, signal, sys, time, torch
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

if __name__ == "__main__":
    memory = SharedMemory(create=True, size=1 << 20)
    lock = multiprocessing.get_context("spawn").Lock()
    torch.multiprocessing.set_sharing_strategy("file_system")
    tensor = torch.zeros(1000).share_memory_()
    _, handle, _ = tensor.untyped_storage()._share_filename_cpu_()
    tracker = resource_tracker._resource_tracker._pid
    with open("names", "a") as file:
        print(tracker, memory.name, "sem." + lock._semlock.name.lstrip("/"), handle.decode().lstrip("/"), file=file)
    if (sys.argv[1], os.environ["SUPERVISE_ATTEMPT"]) == ("stopped", "0"):
        os.kill(tracker, signal.SIGSTOP)
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()  # no rank is killed before each has said what it made
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        time.sleep(0.01)
    torch.distributed.destroy_process_group()
    memory.close()
    memory.unlink()
"""


def _shared(run: Run) -> tuple[list[Path], list[int]]:
    """Everything in shared memory that the ranks said they made, and their trackers."""
    lines = [line.split() for line in (run.folder / "names").read_text().splitlines()]
    assert len(lines) == 4
    return [Path("/dev/shm", name) for line in lines for name in line[1:]], [int(line[0]) for line in lines]


def test_shared_memory_of_killed_ranks_is_gone(run: Run) -> None:
    """As under torchrun, although not only the ranks are killed here."""
    assert run.launch("--nproc", "2", "--inject", "kill:rank=1@step=5", run.script(SHARING), "trains") == 0

    assert [cause for cause, _ in run.verdicts()] == ["killed", "finished"]
    paths, _ = _shared(run)
    assert [path for path in paths if path.exists()] == []
    run.assert_nothing_left()


def test_a_caretaker_that_does_not_go_is_killed(run: Run) -> None:
    """The next attempt does not begin beside anything of the last one."""
    assert run.launch("--nproc", "2", "--inject", "kill:rank=1@step=5", run.script(SHARING), "stopped") == 0

    paths, trackers = _shared(run)
    # A zombie is gone as soon as the machine's first process looks.
    assert living(trackers) == []
    run.assert_nothing_left()
    for path in paths:
        path.unlink(missing_ok=True)
