"""CUDA works in forked ranks: nothing has started it in the process that they are forks of.

There is no GPU here, so a library takes the driver's place that knows what the driver knows: in which process it was
started, and that it can be started in no fork of that one. Another takes NVML's place, which NCCL needs: it works in a
fork only if the file that it has opened is still open there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until

DRIVER = """
#include <unistd.h>
static int started;
int cuInit(unsigned flags) { if (!started) started = getpid(); return started == getpid() ? 0 : 3; }
int cuDeviceGetCount(int *count) { if (started != getpid()) return 3; *count = 0; return 0; }
"""
NVML = """
#include <fcntl.h>
#include <sys/stat.h>
static int file = -1;
static struct stat opened;
int nvmlInit(void) {
    struct stat now;
    if (file < 0) fstat(file = open("/dev/zero", O_RDONLY), &opened);
    return fstat(file, &now) || now.st_rdev != opened.st_rdev ? 999 : 0;
}
int nvmlDeviceGetCount_v2(int *count) { *count = 0; return nvmlInit(); }
"""
SITE = """
import sys
class Finder:
    # torch, once it is imported, counts GPUs as one built for CUDA does.
    def find_spec(self, name, path, target=None):
        if name == "torch.cuda":
            sys.meta_path.remove(self)
            import ctypes, torch
            torch._C._cuda_getCurrentRawStream = None
            torch._C._cuda_getDeviceCount = lambda: ctypes.CDLL("libcuda.so.1").cuInit(0) and 0
sys.meta_path.insert(0, Finder())
"""
STARTS_IT = "import ctypes; assert ctypes.CDLL('libcuda.so.1').cuInit(0) == 0"
SCRIPT = f"""
import ctypes, json, os, sys
before = "starts_cuda" in sys.modules
import torch, harmless
assert torch.cuda.device_count() == 0
import starts_cuda
names = ("PYTORCH_NVML_BASED_CUDA_CHECK", "JE_ARROW_MALLOC_CONF", "NUMEXPR_NUM_THREADS")
json.dump({{
    "started": ctypes.CDLL("libcuda.so.1").cuInit(0), "before": before,
    "nvml": ctypes.CDLL("libnvidia-ml.so.1").nvmlInit(),
    "user": [os.environ.get(name) for name in names],
    "original": "cuInit" in torch._C._cuda_getDeviceCount.__code__.co_names,
}}, open("seen" + os.environ["SUPERVISE_ATTEMPT"] + os.environ["RANK"], "w"))
{STEPPING}
"""


def _seen(folder: Path, attempt: int, rank: int) -> dict[str, Any] | None:
    """What that rank has found, once all of it is there."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / f"seen{attempt}{rank}").read_bytes())
        return found
    return None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: there is nothing to make a driver's stand-in with")
@pytest.mark.parametrize("asked", [None, "0"], ids=["the user asks for nothing", "the user asks the driver"])
def test_cuda_can_be_started_in_every_rank(run: Run, tmp_path: Path, asked: str | None) -> None:
    """Though torch and the launcher have counted GPUs; a module that starts CUDA is left to the ranks and named; and
    these find the environment that the user gave, and torch as it is."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for name, text in {"sitecustomize": SITE, "starts_cuda": STARTS_IT, "harmless": "import torch.cuda"}.items():
        (site / f"{name}.py").write_text(text)
    for library, text in {"libcuda.so.1": DRIVER, "libnvidia-ml.so.1": NVML}.items():
        (tmp_path / "library.c").write_text(text)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / library, tmp_path / "library.c"], check=True)
    env = {
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "LD_LIBRARY_PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        **({"PYTORCH_NVML_BASED_CUDA_CHECK": asked} if asked else {}),
    }
    run.start("--nproc", "2", run.script(SCRIPT), "100000", "0.05", **env)
    waits = until(lambda: [e for e in run.events("standby_ready") if "left_out" in e])[0]
    # Ranks that nothing keeps together: one may have stepped before the other has begun.
    seen = [until(lambda rank=rank: _seen(tmp_path, 0, rank)) for rank in range(2)]  # type: ignore[misc]
    run.cli("inject", "run", "kill:rank=1")
    seen += [until(lambda rank=rank: _seen(tmp_path, 1, rank)) for rank in range(2)]  # type: ignore[misc]
    run.until_event("first_step", 2)
    run.cli("stop", "run", "--now")
    assert run.wait() == 103

    assert [event["kind"] for event in run.events("attempt_started")] == ["fork", "fork"]
    assert list(waits["left_out"]) == ["starts_cuda"] and "CUDA" in waits["left_out"]["starts_cuda"]
    wanted = {"started": 0, "nvml": 0, "before": False, "user": [asked, None, None], "original": True}
    assert seen == [wanted] * 4
