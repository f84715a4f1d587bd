"""The rendezvous of several nodes: each launcher knows all ranks from its flags, by torch's own code."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
from torch.distributed.elastic.utils import store as store_util

from trainer.rank.engine.rendezvous import Ranks
from trainer.rundir.records.gate import Gate
from trainer.rundir.variables import GROUP


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1, 3), (1,) * 5])
def test_ranks(sizes: tuple[int, ...]) -> None:
    """The engine of each node gives its ranks the numbers after those of the nodes before it, and asks nobody."""
    found = []
    for node, size in enumerate(sizes):
        spec = SimpleNamespace(role="default", local_world_size=size)
        workers = SimpleElasticAgent._assign_worker_ranks(  # type: ignore[call-arg]
            object(), Ranks(sizes, node), node, len(sizes), spec
        )
        found += [(worker.global_rank, worker.local_rank, worker.world_size) for worker in workers]

    places = [(local, sum(sizes)) for size in sizes for local in range(size)]
    assert found == [(rank, *place) for rank, place in enumerate(places)]


def test_who_serves_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At torch's barrier at the end, only the launcher that serves the store waits, until the supervisor lets it go."""
    monkeypatch.setenv(GROUP, str(tmp_path))
    ended = []

    def leave(node: int) -> None:
        store_util.barrier(Ranks((1, 1), node), 2, "end", barrier_timeout=30)
        ended.append(node)

    threads = [threading.Thread(target=leave, args=(node,)) for node in (0, 1)]
    for thread in threads:
        thread.start()
    threads[1].join(60)
    early = list(ended)
    Gate(tmp_path).over.touch()
    # A fifth of the time for which it would stay without that.
    threads[0].join(60)

    assert (early, ended) == ([1], [1, 0])
