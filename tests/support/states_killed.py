"""A program: each case of state_cases and state_programs trained by ranks that are killed in the middle, and resumed.

Arguments: a folder, "memory" or "disk" (with "-one": only the last rank is killed, and the others when it is gone), a
number of ranks, and names of cases (none: all). Prints a line of JSON for each case: where the resumed ranks began, and
"same", "refused: …" or what differs from a run that nobody killed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist

from tests.support.jobs import same
from tests.support.state_rarities import CASES
from trainer.checkpoint import Checkpointer, CheckpointError
from trainer.rundir.machine import shm
from trainer.rundir.variables import ATTEMPT, MARK, RUN_DIR

STEPS, KILL, EVERY = 8, 5, 2


def _rank(name: str, rank: int, world: int, folder: Path, phase: str, tier: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{phase}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    tier, _, one = tier.partition("-")
    case = CASES[name](rank, world)
    restored = case.given.pop("restored", lambda extra: None)
    torch.manual_seed(100 + rank)
    found: dict[str, Any] = {}
    try:
        if phase == "whole" or tier == "disk":
            ckpt = Checkpointer(**case.given, directory=folder / phase.rstrip("12"), every=EVERY)
        else:
            os.environ.update({MARK: f"{folder.name}.{phase[-1]}", RUN_DIR: str(folder / "run"), ATTEMPT: phase[-1]})
            (folder / "run/attempts" / f"000{phase[-1]}").mkdir(parents=True, exist_ok=True)
            ckpt = Checkpointer(**case.given, every=None, snapshot_every=1)
        found["start"] = ckpt.restore()
        if ckpt.extra:
            restored(ckpt.extra)
        for step in range(found["start"], STEPS):
            case.step(step)
            if phase == "killed1" and step + 1 == KILL and (rank == world - 1 or not one):
                os.kill(os.getpid(), signal.SIGKILL)
            ckpt.step(step + 1)
        # The generators too.
        found["state"] = [_plain(case.state()), torch.rand(3)]
    except CheckpointError as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found-{phase}-{rank}")


def _plain(value: Any) -> Any:
    """`value`, each DTensor as what this rank has of it."""
    if isinstance(value, torch.Tensor):
        return (value.to_local() if hasattr(value, "to_local") else value).detach().clone()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _phase(name: str, world: int, folder: Path, phase: str, tier: str) -> list[dict[str, Any]]:
    children = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                warnings.simplefilter("ignore")
                _rank(name, rank, world, folder, phase, tier)
                code = 0
            except BaseException as error:
                print(f"{name}, {phase}, rank {rank}: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(pid)
    alive = set(children)
    while alive:
        pid, status = os.wait()
        alive.discard(pid)
        if os.waitstatus_to_exitcode(status):
            for other in alive:
                os.kill(other, signal.SIGKILL)  # they would wait for it
    paths = [folder / f"found-{phase}-{rank}" for rank in range(world)]
    return [torch.load(path, weights_only=False) for path in paths if path.exists()]


def _outcome(name: str, world: int, folder: Path, tier: str) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for phase in ("whole", "killed1", "killed2"):
        runs[phase] = _phase(name, world, folder, phase, tier)
        if phase == "whole" and not all("state" in one for one in runs[phase]):
            break
    told = {one["refused"] for found in runs.values() for one in found if "refused" in one}
    if told:
        return {"outcome": "refused: " + "; ".join(sorted(told))}
    whole, resumed = runs["whole"], runs.get("killed2", [])
    if len(whole) < world or len(resumed) < world:
        return {"outcome": f"died: {len(whole)} and {len(resumed)} of {world} ranks ended"}
    differ = [rank for rank in range(world) if not same(whole[rank]["state"], resumed[rank]["state"])]
    return {"start": resumed[0]["start"], "outcome": f"differs on ranks {differ}" if differ else "same"}


def main(place: str, tier: str, ranks: str, *names: str) -> None:
    # The ranks are forks: what was imported is looked through and copied by none of them.
    gc.freeze()
    for number, name in enumerate(names or CASES):
        folder = Path(place) / f"{Path(place).name}-{tier}{ranks}-{number}"
        folder.mkdir()
        try:
            print(json.dumps({"case": name, **_outcome(name, int(ranks), folder, tier)}), flush=True)
        finally:
            shm.remove(shm.segment_of(folder.name))


if __name__ == "__main__":
    main(*sys.argv[1:])
