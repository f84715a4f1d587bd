"""What a user does with the wheel, and what must come of it. `user.py wheel FILE CHECKOUT`, then `all`, then `gone`.

Run by .ci/wheel with the Python of a venv that holds the wheel alone, in an empty folder. The first thing that is not
as it must be ends it with a traceback.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SMALL = "--n-layer 1 --n-embd 32 --n-head 2 --block-size 32 --batch-size 8 --dropout 0.1 --log-every 20".split()
STEPS, KILLED_AT = 60, 37
# As PyTorch's tutorials have it: no line for a supervisor; `trainer` is the user's own module.
SCRIPT = """
    import os, random, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import trainer

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16)))
    optimizer = torch.optim.AdamW(model.parameters())
    start = 0
    if os.path.exists("own.pt"):
        saved = torch.load("own.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    for step in range(start, 40):
        data = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        optimizer.zero_grad()
        trainer.loss(model(torch.randn(4, 8, generator=data))).backward()
        optimizer.step()
        if dist.get_rank() == 0 and (step + 1) % 5 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, "own.new")
            os.replace("own.new", "own.pt")
        dist.barrier()
    dist.destroy_process_group()
"""
TRAINER = "def loss(out):\n    return out.square().mean()\n"


def supervise(*arguments: str, code: int = 0, cwd: Path | None = None) -> str:
    """What the program printed on stdout; it ended with `code`."""
    done = subprocess.run([SUPERVISE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)
    if done.returncode != code:
        raise SystemExit(f"supervise {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def python(code: str, cwd: Path | None = None) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, check=True, timeout=240)


def same(one: Any, two: Any) -> bool:
    """Whether nested state is equal to the bit."""
    import torch

    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, torch.Tensor):
        return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))
    return type(one) is type(two) and bool(one == two)


def wheel(file: Path, checkout: Path) -> None:
    """Our packages are in it in full, under names of their own, and of other names facades: a file each."""
    names = {name for name in zipfile.ZipFile(file).namelist() if ".dist-info/" not in name}
    expected = {"trainer/__init__.py", "supervise/__init__.py", "supervisor.py"}
    for real, folder in (("_supervise", "trainer"), ("_supervisor", "supervisor")):
        paths = [*(checkout / folder).rglob("*.py"), checkout / folder / "py.typed"]
        paths += [path for room in ("templates", "uplot") for path in (checkout / folder / "pages" / room).glob("*")]
        expected |= {f"{real}/{path.relative_to(checkout / folder)}" for path in paths}
    assert names == expected, names ^ expected


def imports() -> None:
    """Nothing of the checkout or of an extra is there, and each public name leads to the same objects, whoever is
    first."""
    assert not [name for name in ("numpy", "pytest", "py_spy") if importlib.util.find_spec(name)]
    for first, second in (("trainer", "supervise"), ("supervise", "trainer")):
        python(f"""
            import {first}, sys
            assert "torch" not in sys.modules and "site-packages" in {first}.__file__, {first}
            from {first}.checkpoint import Checkpointer
            import {second}.rundir.layout
            assert {first} is {second} and {second}.Checkpointer is Checkpointer
        """)
    python("""
        from supervisor import Run, launch
        import supervise, supervisor.errors, sys
        assert supervise.launch is launch and supervise.Run is Run and "torch" not in sys.modules
    """)
    # Two distributions of that name: supervisord's is a folder, and stays what it was.
    theirs = Path(sysconfig.get_path("purelib"), "supervisor")
    theirs.mkdir()
    (theirs / "__init__.py").write_text("whose = 'theirs'")
    python("""
        import supervise, supervisor
        assert supervisor.whose == "theirs" and supervise.launch
    """)
    shutil.rmtree(theirs)
    for name in ("trainer", "supervise"):
        alone = ["-m", name, "--steps", "2", "--out", name + ".out", *SMALL]
        subprocess.run([sys.executable, *alone], check=True, timeout=240)


def built_in() -> None:
    """A kill in the middle, and the same bits as a run that nobody touched; what the commands say of it."""
    shared = ("--nproc", "2", "--quiet")
    kill = ("--inject", f"kill:rank=1@step={KILLED_AT}")
    every = ("--steps", str(STEPS), "--snapshot-every", "1", *SMALL)
    supervise("launch", "--run-dir", "killed", *shared, *kill, "--", *every)
    supervise("launch", "--run-dir", "undisturbed", *shared, "--", *every)

    from supervise.checkpoint.disk.restore import load

    for rank in range(2):
        ends = [load(Path(run, "checkpoints", f"step-{STEPS:08d}"), rank) for run in ("killed", "undisturbed")]
        assert same(ends[0].shared, ends[1].shared) and same(ends[0].own, ends[1].own), f"rank {rank} ends otherwise"
    events = [json.loads(line) for line in Path("killed/events.jsonl").read_text().splitlines()]
    resumed = [event for event in events if event["msg"] == "resumed"][-1]
    warnings = [event["text"] for event in events if event["msg"] == "warning"]
    # What saves cost says how busy the machine is: the other jobs run beside this one.
    assert not [text for text in warnings if "% of the time" not in text], warnings
    assert {event["kind"] for event in events if event["msg"] == "attempt_started"} == {"fork"}, events
    assert resumed["source"] == "memory" and resumed["step"] >= KILLED_AT - 2, resumed
    assert "ok" in supervise("ckpt", "verify", "killed")
    assert "SIGKILL" in supervise("report", "killed")
    status = json.loads(supervise("status", "killed", "--json"))
    assert (status["state"], status["attempt"], status["step"]) == ("finished", 1, STEPS), status
    supervise("ckpt", "export", "killed", "--format", "torch", "--output", "exported.pt")
    assert Path("exported.pt").stat().st_size


def unmodified() -> None:
    """A script that knows nothing of us, a module called trainer beside it: killed in fresh and in forked ranks, it
    comes back from its own checkpoint and ends as it does alone."""
    import torch

    ends = []
    for name, options in {"plain": (), "kill": ("--inject", "kill:rank=0@step=23")}.items():
        folder = Path(name)
        folder.mkdir()
        (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
        (folder / "trainer.py").write_text(TRAINER)
        supervise("launch", "--nproc", "2", "--run-dir", "run", "--quiet", *options, "train.py", cwd=folder)
        ends.append(torch.load(folder / "own.pt"))
    assert same(*ends), "the killed script ends otherwise"
    verdicts = [json.loads(line) for line in Path("kill/run/events.jsonl").read_text().splitlines()]
    assert [event["cause"] for event in verdicts if event["msg"] == "verdict"] == ["killed", "finished"]


def from_python() -> None:
    """A run that Python launches and waits for."""
    folder = Path("python")
    folder.mkdir()
    (folder / "train.py").write_text("print('trained')")
    (folder / "trainer.py").write_text(TRAINER)
    python(
        """
        import signal, sys
        from supervisor import SuperviseError, launch
        run = launch("train.py", nproc=2, standby=False)
        assert run.wait(200) == 0 and run.status()["state"] == "finished"
        assert [event["msg"] for event in run.events()][-1] == "run_ended"
        assert "torch" not in sys.modules and "click" not in sys.modules
        import trainer
        assert trainer.loss
    """,
        folder,
    )


def doctor() -> None:
    """torch and Python are found and of use."""
    done = subprocess.run([SUPERVISE, "doctor", "--json"], capture_output=True, text=True, timeout=240)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["torch"]["verdict"] == checks["names"]["verdict"] == "ok", checks


def gone() -> None:
    """After pip uninstall nothing of ours is left in the venv."""
    library = Path(sysconfig.get_path("purelib"))
    left = [path for path in library.iterdir() if path.name.startswith(("_super", "super", "trainer"))]
    assert not left and not Path(SUPERVISE).exists(), left
    assert "supervise" not in {found.metadata["Name"] for found in importlib.metadata.distributions()}


def main() -> None:
    what, *arguments = sys.argv[1:]
    # Its folder is the checkout's: nothing is to be found there.
    del sys.path[0]
    if what == "wheel":
        wheel(*map(Path, arguments))
    elif what == "gone":
        gone()
    else:
        for step in (imports, doctor, from_python, built_in, unmodified):
            began = time.monotonic()
            step()
            print(f"wheel: {step.__name__} {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    assert not [name for name in os.environ if name.startswith(("SUPERVISE_", "TORCHELASTIC_"))]
    main()
