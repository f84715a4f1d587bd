"""The private parts of torch that we replace: they are there in this torch, and where one is not, the run says so."""

from __future__ import annotations

from tests.scripts import STEPPING
from tests.supervised import Run

# Every process of the run is started with it. What is taken away is what cold ranks need, and these are forks.
TAKES_AWAY = """
import sys
if not any(argument.endswith("supervise") for argument in sys.orig_argv):
    import torch.distributed.elastic.multiprocessing as engine
    del engine.SubprocessContext
"""


def test_what_this_torch_has_not_is_said(run: Run) -> None:
    """Nothing is missing in the torch that is tested with; of another one, what is missing is named, and the run goes on."""
    assert run.launch("--nproc", "2", run.script(STEPPING), "3") == 0
    assert run.warnings() == ""

    run.script(TAKES_AWAY, "sitecustomize.py")
    assert run.launch("--resume", "never", "--nproc", "2", "script.py", "3", PYTHONPATH=str(run.folder)) == 0
    assert run.warnings().count("SubprocessContext._poll") == 1
