"""Open files: how many a run needs, and whether it may open them."""

from __future__ import annotations

import resource

from supervisor.errors import Refusal

_BASE, _PER_RANK = 128, 8
"""Descriptors of the supervisor, and of a rank that trains with gloo. A launcher has some for each of its ranks."""


def enough(nproc: int) -> None:
    """This process and its children may open as many files as a run of `nproc` ranks needs. Else Refusal."""
    needed = _BASE + _PER_RANK * nproc
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Refusal(
            f"a process may have {hard} open files here, and a run of {nproc} ranks needs {needed}; "
            f"raise the limit: ulimit -n {needed} (docker run --ulimit nofile=65536, systemd LimitNOFILE=)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
