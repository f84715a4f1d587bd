"""Checks that must try something: import torch in a child, trace a child, hold a child by pidfd."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from supervisor.attempt.stacks import pyspy
from supervisor.checkup.checks import Check, Verdict
from supervisor.checkup.installed import untested
from supervisor.process import loopback
from supervisor.process.kill import kill_child
from supervisor.process.proctree import Process, be_subreaper, is_subreaper

TIME_LIMIT = 60.0
"""Seconds that the import of torch may take: a cold network disk is slow."""
# The current folder may belong to anybody: no module there is imported.
_ASK_TORCH = """
import sys; sys.path.pop(0)
import json, os, time
began = time.monotonic()
import torch, torch.distributed as dist
seconds = time.monotonic() - began
# Pools that know about forks step aside at one.
os.waitpid(os.fork() or os._exit(0), 0)
threads = len(os.listdir("/proc/self/task"))
print(json.dumps({
    "version": torch.__version__, "seconds": seconds, "threads": threads, "distributed": dist.is_available(),
    "cuda": torch.version.cuda, "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
}))
"""
_PTRACE_SEIZE = 0x4206


def python() -> Check:
    return Check("python", Verdict.OK, f"Python {'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}")


class TooSlow(str):
    """The reason why there is no answer: none came in time. Nothing needs to be installed for that."""


def ask_torch(program: str = _ASK_TORCH, time_limit: float = TIME_LIMIT) -> dict[str, Any] | str:
    """torch's report about itself, or one line with the reason why there is none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=time_limit, check=False
        )
    except subprocess.TimeoutExpired:
        return TooSlow(f"import torch took longer than {time_limit:.0f} s")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return answer


def torch(answer: dict[str, Any] | str) -> Check:
    if isinstance(answer, TooSlow):
        hint = f"the disk or the machine is slow or busy: {sys.executable} -X importtime -c 'import torch' says where"
        return Check("torch", Verdict.WARN, answer, hint)
    if isinstance(answer, str):
        return Check(
            "torch", Verdict.BAD, f"torch cannot be imported: {answer}", f"{sys.executable} -m pip install torch"
        )
    text = f"torch {answer['version']}, imported in {answer['seconds']:.1f} s"
    if not answer["distributed"]:
        return Check(
            "torch", Verdict.BAD, f"{text}, was built without torch.distributed", "install another build of torch"
        )
    if said := untested(answer["version"]):
        return Check("torch", Verdict.WARN, f"{text}; {said}", "if something fails, install one in between")
    return Check("torch", Verdict.OK, text)


def cuda(answer: dict[str, Any] | str, dev: Path = Path("/dev")) -> Check:
    nodes = sorted(p.name for p in dev.glob("nvidia[0-9]*"))
    devices = 0 if isinstance(answer, str) else answer["devices"]
    if devices:
        return Check("cuda", Verdict.OK, f"{devices} GPUs")
    if nodes:
        text = f"{len(nodes)} NVIDIA devices are in {dev}, and torch sees none"
        return Check(
            "cuda", Verdict.WARN, text, "compare nvidia-smi with torch.version.cuda; look at CUDA_VISIBLE_DEVICES"
        )
    return Check("cuda", Verdict.OK, "no GPU here: ranks run on the CPU, with gloo")


def standby(answer: dict[str, Any] | str, left_out: list[tuple[str, dict[str, str], float]]) -> Check:
    """Whether the next group can be forked with everything imported.

    `left_out`: the modules that the scripts' last runs had to leave out, with the reasons and their seconds.
    """
    if isinstance(answer, str):
        return Check("standby", Verdict.OK, "not looked at, without torch")
    if answer.get("threads", 1) > 1:
        text = (
            f"{answer['threads'] - 1} threads run once torch is imported: no rank can be forked, "
            f"and each restart imports again, {answer['seconds']:.1f} s and more"
        )
        return Check("standby", Verdict.WARN, text, "look for what starts them in sitecustomize.py and .pth files")
    if left_out:
        each = [f"{script}, {seconds:.1f} s: {_said(causes)}" for script, causes, seconds in left_out]
        text = f"imported again at each restart of {'; of '.join(each)}"
        return Check(
            "standby", Verdict.WARN, text, "another version of it, or an import where it is used, not at the top"
        )
    return Check("standby", Verdict.OK, "ranks are forked, with all that a script imports")


def _said(causes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({why})" for name, why in sorted(causes.items()))


def stacks() -> Check:
    if pyspy() is None:
        text = "py-spy is not installed: a hang is found by fixed limits only"
        return Check("stacks", Verdict.WARN, text, f"{sys.executable} -m pip install py-spy")
    if not _can_trace():
        text = "ptrace is refused here: a hang is found by fixed limits only"
        return Check(
            "stacks", Verdict.WARN, text, "docker run --cap-add SYS_PTRACE, or sysctl kernel.yama.ptrace_scope=1"
        )
    return Check("stacks", Verdict.OK, "py-spy can look into a rank that is silent")


def _can_trace() -> bool:
    child = subprocess.Popen(["sleep", "60"])
    try:
        answer: int = ctypes.CDLL(None).ptrace(_PTRACE_SEIZE, child.pid, None, None)
        return answer == 0
    finally:
        kill_child(child.pid)
        child.wait()


def processes() -> Check:
    try:
        Process(os.getpid()).close()
    except (OSError, AttributeError):
        return Check("processes", Verdict.BAD, "no pidfd: a rank cannot be killed safely", "use Linux 5.3 or newer")
    before = is_subreaper()
    if not be_subreaper():
        return Check("processes", Verdict.BAD, "no subreaper: orphans of a launcher are lost", "use Linux 3.4 or newer")
    be_subreaper(before)
    return Check("processes", Verdict.OK, "every process of a run can be held and killed")


def resolver(time_limit: float = 2.0) -> Check:
    """Whether the resolver answers for this host's own name. torch and gloo ask for that name, and wait."""
    name = socket.gethostname()
    code = f"import socket; socket.getaddrinfo({name!r}, None)"
    try:
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, timeout=time_limit, check=False)
    except subprocess.TimeoutExpired:
        text = f"nobody answers for {name}, this host's own name: what asks for it waits ({time_limit:.0f} s and more)"
    else:
        if done.returncode == 0:
            return Check("resolver", Verdict.OK, f"{name} is resolved")
        text = f"{name}, this host's own name, is not resolved"
    hint = f"add '127.0.0.1 {name}' to /etc/hosts; ranks meet on the loopback interface all the same"
    return Check("resolver", Verdict.WARN, text, hint)


def network() -> Check:
    found = loopback.interfaces()
    if up := loopback.chosen():
        return Check("network", Verdict.OK, f"ranks meet on {up}, where nobody else reaches them")
    if not found:
        return Check("network", Verdict.WARN, "the kernel does not tell of a loopback interface, and ranks meet there")
    name = next(iter(found))
    return Check("network", Verdict.BAD, f"{name} is down, and ranks meet there", f"ip link set {name} up")
