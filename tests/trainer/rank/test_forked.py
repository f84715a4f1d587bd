"""A script finds in a rank what torchrun would have given it, attribute by attribute, but for what is named here."""

from __future__ import annotations

import fnmatch
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.supervised import ROOT, SUPERVISE, Run, environment

OUTER = f"""
import os, resource, signal, sys
os.umask(0o027)
os.nice(3)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signal.SIGWINCH)}])
resource.setrlimit(resource.RLIMIT_NOFILE, (900, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.environ.pop("PYTHONUNBUFFERED", None)
os.dup2(os.open("words", os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Whoever launches has habits of their own, and something for the script to read."""
OURS = "what a supervised rank is told of its run"
LOOPBACK = "nothing of a run listens on any other interface"
TOLD = "what a launcher tells its ranks of themselves: another port, id and file in each run"
PRELOADED = "modules that are imported already, which is what a fork is for"
ALLOWED = {
    "depth": "the script is called by our code, and in a fork by the engine's: frames that no traceback shows",
    "start.meta_path": "ours come first: they serve our names, and notice when torch is imported",
    "system.initial environment.*": "what /proc shows was written when the process was started: a fork has the fork"
    " server's, with the mark by which every process of a run is found",
    "python.environment.SUPERVISE_*": OURS,
    "python.environment.PYTHONPATH": "where programs that the script starts find our hooks",
    "python.environment.VIEW": "this test's own",
    "python.environment.WANDB_*": "one run in the tracker for all attempts",
    "python.environment.*_SOCKET_IFNAME": LOOPBACK,
    "python.environment.MASTER_ADDR": LOOPBACK,
    "python.environment.MASTER_PORT": TOLD,
    "python.environment.TORCHELASTIC_RUN_ID": TOLD,
    "python.environment.TORCHELASTIC_ERROR_FILE": TOLD,
    "python.buffers": "a full disk does not end who prints",
    "python.frozen": "no collection need look at " + PRELOADED,
    "imported.variables": "torch's own, set again once it needs it: until then the script may",
    "imported.temporary files": "asked for anew after " + PRELOADED,
    "system.files.[12] *": "stdout and stderr are the rank's log",
    "system.files.*.faulthandler.txt": "where the rank's stacks go",
    "system.files.*/beats": "where its beats go",
    "system.files.pipe": "libuv's, which serves torch's store in the launcher and closes two of its own at every fork",
    "imported.files.*": "as before the imports",
    "system.signals.SigCgt": "the signal that asks for stacks, and one of glibc's own",
    "imported.loggers.torchelastic-events-null": "the engine's, which has been at work in the process that was forked",
}
"""By attribute, as a pattern: why it is not what it is under torchrun."""


def flat(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        for key, value in part.items():
            yield from flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, part


def different(seen: Any, plain: Any) -> dict[str, tuple[Any, Any]]:
    """By attribute that may not differ, and does: what was seen, and what was to be seen."""
    mine, theirs = dict(flat(seen)), dict(flat(plain))
    names = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    return {
        name: (mine.get(name), theirs.get(name))
        for name in sorted(names)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED)
    }


def test_a_script_sees_what_torchrun_would_show_it(run: Run, tmp_path: Path) -> None:
    """A fork, and a rank that is started cold, are as an interpreter is that torchrun starts for the script."""
    script = run.script((ROOT / "tests/support/view.py").read_text(), "view.py")
    (tmp_path / "words").write_text("one line\nanother\n")
    command = [script, "--rate", "0.1", "two words"]
    plain = [sys.executable, "-c", OUTER, "-m", "torch.distributed.run", "--nproc-per-node", "1", *command]
    torchrun = subprocess.Popen(plain, cwd=run.folder, env=environment(VIEW=str(tmp_path / "plain")))
    outer = [sys.executable, "-c", OUTER]
    runs = {"--standby": run, "--no-standby": Run(run.folder)}
    runs["--no-standby"].dir = type(run.dir)(run.folder / "cold")
    try:
        for option, one in runs.items():
            where = ["--run-dir", str(one.dir.path), "--max-restarts", "0", option]
            one.start(*where, *command, program=[*outer, SUPERVISE], VIEW=str(tmp_path / option[2:]))
        assert [one.wait() for one in runs.values()] == [0, 0]
        assert torchrun.wait(60) == 0
    finally:
        torchrun.kill()
        runs["--no-standby"].kill()

    views = {name: json.loads((tmp_path / name).read_bytes()) for name in ("plain", "standby", "no-standby")}
    assert run.events("attempt_started")[0]["kind"] == "fork"
    for name in ("standby", "no-standby"):
        assert different(views[name]["seen"], views["plain"]["seen"]) == {}
    assert views["standby"]["seen"]["python"]["what can be read"] == "one line\nanother\n"
    assert "SUPERVISE_MARK" in views["standby"]["seen"]["system"]["initial environment"]
    # Nobody draws what another one has drawn.
    assert all(len(set(draws)) == 3 for draws in zip(*(view["draws"] for view in views.values()), strict=True))
