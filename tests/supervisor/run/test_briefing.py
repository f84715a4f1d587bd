"""The things that an attempt is told, by what an earlier one has saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.run.briefing import Situation, brief
from supervisor.run.spec import Spec
from tests.supervisor.run.test_candidates import Saver
from trainer.adapters.program import Program
from trainer.rundir.files.codec import encode


@pytest.mark.parametrize(
    ("nodes", "ranks", "said"),
    [
        (1, 2, "told to go on"),
        (2, 4, "told to go on"),
        (2, 6, "by 6 ranks, and there are 4 now"),
        (1, 4, "by 4 ranks, and there are 2 now"),
    ],
)
def test_the_ranks_of_all_nodes_count(tmp_path: Path, nodes: int, ranks: int, said: str) -> None:
    """A checkpoint of as many ranks as there are on all nodes is handed over. If not, the event says why."""
    made = Saver(tmp_path)
    for rank in range(ranks):
        made.save(f"checkpoint-10/rng_state_{rank}.pth", 10, rank=rank, how="transformers.Trainer")
    (made.out / "checkpoint-10/optimizer.pt").touch()
    (made.out / "checkpoint-10/trainer_state.json").write_text(json.dumps({"global_step": 10}))
    program = Program(uses=frozenset({"huggingface"}), trained=True, world=ranks)
    made.run.options.write_bytes(encode(program))
    spec = Spec("r", "m", ("train.py",), False, 2, "/")
    briefing = brief(made.journals, spec, Situation(1, nodes=nodes))
    assert briefing.event is not None and said in briefing.event["text"]
    assert briefing.told.offers == ((str(made.out / "checkpoint-10"),) if said == "told to go on" else ())
