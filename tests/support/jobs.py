"""Small states to save, ranks in one process, and trainer runs in others."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from trainer.checkpoint.disk.commit import tidy
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.disk.save import Order, Outcome, save
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.nodes.nodes import Nodes
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.rundir.files.durable import DISK, Disk
from trainer.rundir.layout import step_name

ROOT = Path(__file__).resolve().parents[2]


def state_of(step: int) -> dict[str, Any]:
    """A state that differs in every part from that of another step."""
    weight = torch.arange(10, dtype=torch.float32).reshape(2, 5) + step
    return {
        "model": {"w": weight, "half": weight.to(torch.bfloat16)[:, ::2], "empty": torch.zeros(0, 3)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "m": weight * 2}},
            "param_groups": [{"lr": 0.1}],
        },
        "step": step,
        "extra": {"pair": (1, None), "worst": float("inf")},
    }


def write(folder: Path, step: int, disk: Disk = DISK, keep: int = 3, ranks: Ranks | None = None) -> Outcome:
    """Saves state_of(step) as a Checkpointer does."""
    ranks = ranks or Ranks()
    outcome = save(Order(folder, step, pack(state_of(step)), capture_rank(ranks.rank)), ranks, disk)
    if outcome.error is None and ranks.rank == 0:
        assert tidy(folder, step, keep, disk) is None
    return outcome


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and bool(torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def holds(folder: Path, step: int) -> bool:
    """Whether the checkpoint of `step` loads and is exactly what write() saved."""
    return same(load(folder / step_name(step), 0).shared, state_of(step))


class Mail(dict[tuple[int, int, int], "queue.SimpleQueue[torch.Tensor]"]):
    """What ranks have sent, by sender, receiver and tag."""

    def of(self, sender: int, receiver: int, tag: int) -> queue.SimpleQueue[torch.Tensor]:
        """The same queue for both, whoever comes first."""
        return self.setdefault((sender, receiver, tag), queue.SimpleQueue())


class ThreadRanks(Ranks):
    """Ranks that are threads of one process."""

    def __init__(
        self, rank: int, world_size: int, barrier: threading.Barrier, board: list[Any], mail: Mail | None = None
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._barrier, self._board, self._mail = barrier, board, Mail() if mail is None else mail

    def exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = json.dumps(value)
        self._barrier.wait()
        values = [json.loads(text) for text in self._board]
        self._barrier.wait()
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(any(column) for column in zip(*self.exchange(list(flags)), strict=True))

    def send(self, data: torch.Tensor, to: int, tag: int) -> Any:
        self._mail.of(self.rank, to, tag).put(data.clone())
        return SimpleNamespace(wait=lambda: None)

    def take(self, data: torch.Tensor, of: int, tag: int) -> None:
        data.copy_(self._mail.of(of, self.rank, tag).get(timeout=60))


def on_ranks(world_size: int, body: Callable[[Ranks], Any], nodes: tuple[int, ...] = ()) -> list[Any]:
    """What `body` returned, or raised, on each of `world_size` ranks. `nodes`: the node of each; none: there is one."""
    barrier, board = threading.Barrier(world_size, timeout=60), [None] * world_size
    results: list[Any] = [None] * world_size
    mail = Mail()

    def run(rank: int) -> None:
        ranks = ThreadRanks(rank, world_size, barrier, board, mail)
        ranks.nodes = Nodes(nodes or (0,) * world_size)
        try:
            results[rank] = body(ranks)
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


_MODEL = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --dropout 0.1"
TINY = [*_MODEL.split(), *"--batch-size 12 --steps 12 --warmup 2 --data random --threads 1".split()]


def environment() -> dict[str, str]:
    """Of a process that nobody supervises and that finds the trainer."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPERVISE_", "TORCHELASTIC_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def trainer(
    world_size: int, *flags: str, dying: str | None = None, check: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """A run of the trainer, under torchrun if it has several ranks, that ended with exit code `check` (None: whatever).
    `dying` is a death as dying_trainer takes it."""
    command = [sys.executable]
    if world_size > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command += ["-m", "tests.support.dying_trainer" if dying else "trainer", *flags]
    env = {**environment(), **({"DYING": dying} if dying else {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert check is None or done.returncode == check, done.stderr
    return done


def final_state(out: Path, step: int = 12) -> tuple[Any, list[Any], bytes]:
    """(shared state, each rank's own, metrics) as a run left them."""
    path = out / "checkpoints" / step_name(step)
    first = load(path, 0)
    own = [load(path, rank).own for rank in range(first.manifest.world_size)]
    return {**first.shared, "extra": None}, own, (out / "metrics.jsonl").read_bytes()
