"""The private parts of torch that we replace: they are there in this torch, and where one is not, the run says so."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import TCPStore

from tests.support.scripts import STEPPING
from tests.support.supervised import Run
from trainer.rank.loopback import listen
from trainer.rank.torch_patches import store_on

# Every process of the run is started with it. What is taken away is what cold ranks need, and these are forks.
TAKES_AWAY = """
import sys
if not any(argument.endswith("supervise") for argument in sys.orig_argv):
    import torch.distributed.elastic.multiprocessing as engine
    del engine.SubprocessContext
"""


def test_what_this_torch_has_not_is_said(run: Run) -> None:
    """Nothing is missing in the torch that is tested with; of another one, what is missing is named, and the run goes
    on."""
    assert run.launch("--nproc", "2", run.script(STEPPING), "3") == 0
    assert run.warnings() == ""

    run.script(TAKES_AWAY, "sitecustomize.py")
    assert run.launch("--resume", "never", "--nproc", "2", "script.py", "3", PYTHONPATH=str(run.folder)) == 0
    assert run.warnings().count("SubprocessContext._poll") == 1


@pytest.mark.parametrize(("version", "libuv"), [("2.6.0+cpu", False), ("2.7.1", False), (None, True)])
def test_a_store_serves_on_a_socket_of_ours(monkeypatch: pytest.MonkeyPatch, version: str | None, libuv: bool) -> None:
    """By the server of torch that takes one: the older one, before 2.8."""
    if version is not None:
        monkeypatch.setattr(torch, "__version__", version)
    listener = listen()
    port = listener.getsockname()[1]
    store = store_on(listener, TCPStore, "127.0.0.1", port, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", port, is_master=False)
    client.set("here", "yes")
    assert store.get("here") == b"yes"
    assert (store.port, store.libuvBackend, listener.fileno()) == (port, libuv, -1)
