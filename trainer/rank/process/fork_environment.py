"""Settings that keep libraries, in the process that forks, from starting threads or CUDA.

They are environment variables, set before the imports. A rank gets the user's values back: for the processes that it
starts, and for libraries that read the environment later.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

_ASKED = {
    # torch.cuda.is_available() then asks NVML. The driver, once asked, would work in no fork any more.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # Inductor's compile workers, started at its import by torch 2.6.
    "TORCH_WARM_POOL": "0",
    # numexpr's pool, started at its import.
    "NUMEXPR_NUM_THREADS": "1",
}
_JEMALLOCS = ("JE_ARROW_MALLOC_CONF", "_RJEM_MALLOC_CONF")
"""The allocators inside pyarrow and polars give memory back from a thread, which a fork does not have. Without the
thread, freed memory goes back at the next call of the allocator."""
_users: dict[str, str | None] = {}


def enter() -> None:
    """Call it before this process imports modules for its forks."""
    asked = dict(_ASKED)
    for name in _JEMALLOCS:
        asked[name] = ",".join(filter(None, (os.environ.get(name), "background_thread:false")))
    for name, value in asked.items():
        _users[name] = os.environ.get(name)
        os.environ[name] = value


def leave() -> None:
    """This rank has the user's environment. Things that the settings kept from starting have started."""
    asked, found = bool(_users), {name: os.environ.get(name) for name in _users}
    for name, value in _users.items():
        if value is not None:
            os.environ[name] = value
        elif found[name] is not None:
            del os.environ[name]
    _users.clear()
    numexpr: Any = sys.modules.get("numexpr")
    if asked and numexpr is not None:
        with contextlib.suppress(Exception):
            numexpr.nthreads = numexpr.utils._init_num_threads()
