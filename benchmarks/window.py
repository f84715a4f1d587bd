"""The window in which a death loses a finished step: from the return of optimizer.step() to the commit of its snapshot.

python benchmarks/window.py [--against FOLDER] [--ranks 2] [--steps 300] [--rounds 3] [--model small|default] [--json F]

The built-in GPT with a snapshot of every step, in forked ranks without a supervisor process, timed where it happens: at
the end of the optimizer's step, before and after `take`, at the commit record. With --against, another checkout of this
project is measured in turn. Over all steps of all rounds, of rank 0; ratios are of one run. On a busy machine a median
tells how often a rank was put off its core: then look at the first quarter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 20
"""Steps of a run that are not counted."""
COLUMNS = ("step", "window", "take", "before")


def _load(tree: Path) -> None:
    """The package of the checkout `tree` is the one that this process has."""
    init = tree / "trainer" / "__init__.py"
    spec = importlib.util.spec_from_file_location("_supervise", init, submodule_search_locations=[str(init.parent)])
    assert spec is not None and spec.loader is not None
    module = sys.modules["_supervise"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _timed(times: dict[str, list[float]]) -> None:
    """From now on each optimizer step, snapshot and commit of this process is noted."""
    from _supervise.checkpoint.memory.memory import Memory
    from _supervise.checkpoint.memory.segment import Segment
    from torch.optim.optimizer import register_optimizer_step_post_hook

    take, commit = Memory.take, Segment.commit

    def timed_take(self: Any, *args: Any, **kwargs: Any) -> None:
        times["begins"].append(time.perf_counter())
        take(self, *args, **kwargs)
        times["ends"].append(time.perf_counter())

    def timed_commit(self: Any, *args: Any) -> None:
        commit(self, *args)
        times["commits"].append(time.perf_counter())

    Memory.take, Segment.commit = timed_take, timed_commit  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: times["steps"].append(time.perf_counter()))


def _rank(rank: int, folder: Path, given: dict[str, Any]) -> None:
    import torch.distributed as dist
    from _supervise.gpt import loop
    from _supervise.gpt.config import Place, parse

    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(given["ranks"])})
    if given["ranks"] > 1:
        store = dist.FileStore(str(folder / "store"), given["ranks"])
        dist.init_process_group("gloo", store=store, rank=rank, world_size=given["ranks"])
        loop.join = lambda device: None
    times: dict[str, list[float]] = {"steps": [], "begins": [], "ends": [], "commits": []}
    _timed(times)
    config = parse([*given["flags"], "--steps", str(given["steps"]), "--snapshot-every", "1"])
    loop.train(config, Place(rank, rank, given["ranks"], given["ranks"]))
    if rank == 0:
        Path(given["out"]).write_text(json.dumps(times))


def _side(given: dict[str, Any]) -> None:
    """One run in this process and forks of it."""
    _load(Path(given["tree"]))
    import torch._dynamo
    import torch.distributed  # noqa: F401

    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="supervise-window-") as shared,
    ):
        (Path(folder) / "attempts/0001").mkdir(parents=True)
        mark = Path(shared).name.removeprefix("supervise-")
        os.environ.update({"SUPERVISE_RUN_DIR": folder, "SUPERVISE_ATTEMPT": "1", "SUPERVISE_MARK": f"{mark}.1"})
        children = []
        for rank in range(given["ranks"]):
            if (pid := os.fork()) == 0:
                code = 1
                try:
                    _rank(rank, Path(folder), given)
                    code = 0
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        alive, codes = set(children), list[int]()
        while alive:
            pid, status = os.wait()
            alive.discard(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            for other in alive if codes[-1] else ():
                os.kill(other, signal.SIGKILL)  # the others would wait for it
    if any(codes):
        raise SystemExit(f"the ranks ended with {codes}")


def _figures(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """By column, the seconds of each step that counts."""
    n = min(map(len, times.values()))
    rows = range(WARM, n - 1)
    return {
        "step": [times["steps"][i + 1] - times["steps"][i] for i in rows],
        "window": [times["commits"][i] - times["steps"][i] for i in rows],
        "take": [times["ends"][i] - times["begins"][i] for i in rows],
        "before": [times["begins"][i] - times["steps"][i] for i in rows],
    }


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        _side(json.loads(sys.argv[2]))
        return
    import common

    given = common.options(
        __doc__,
        ("--against", {"type": Path, "default": None}),
        ("--ranks", {"type": int, "default": 2}),
        ("--steps", {"type": int, "default": 300}),
        ("--rounds", {"type": int, "default": 3}),
        ("--model", {"choices": list(common.MODELS), "default": "small"}),
    )
    here = common.machine()
    sides = {"this": common.ROOT, **({"other": given.against.resolve()} if given.against else {})}
    found: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in sides}
    for number in range(given.rounds):
        for name, tree in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "times.json"
                told = {"tree": str(tree), "out": str(out), "ranks": given.ranks, "steps": given.steps}
                told["flags"] = [*common.MODELS[given.model], "--log-every", "100000", "--checkpoint-every", "off"]
                subprocess.run([sys.executable, __file__, "--side", json.dumps(told)], check=True)
                figures = _figures(json.loads(out.read_text()))
            for column in COLUMNS:
                found[name][column] += figures[column]
            one = {column: 1000 * statistics.median(figures[column]) for column in COLUMNS}
            common.say(f"round {number + 1}, {name}: " + ", ".join(f"{c} {v:.2f} ms" for c, v in one.items()))
    shown: dict[str, dict[str, dict[str, float]]] = {}
    for title, part in (("medians", 0.5), ("first quarters", 0.25)):
        shown[title] = table = {
            name: {c: 1000 * common.percentile(values[c], part) for c in COLUMNS} for name, values in found.items()
        }
        rows: list[tuple[object, ...]] = []
        for name, row in table.items():
            share = f"{100 * row['window'] / row['step']:.1f} %"
            ratio = f"{row['window'] / table['other']['window']:.2f}" if "other" in table else "-"
            rows.append((name, *(f"{row[c]:.2f} ms" for c in COLUMNS), share, ratio))
        head = ("", "step", "window", "of it take", "before it", "window / step", "to the other")
        common.show(f"{given.model} GPT, {given.ranks} ranks, a snapshot of each step: {title}", head, rows)
    common.write(given.json, "window", here, given, {"ms": shown, "samples_s": found})


if __name__ == "__main__":
    main()
