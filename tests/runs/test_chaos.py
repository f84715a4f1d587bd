"""`supervise chaos` for real: faults at moments that matter, a verdict for each, 107 where the end is not the same."""

from __future__ import annotations

import json
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from supervisor.process.proctree import marked
from supervisor.run.leftovers import marks
from supervisor.run.runs import all_runs
from tests.support.jobs import TINY
from tests.support.supervised import SUPERVISE, environment, start
from tests.support.waiting import until
from trainer.rundir.machine.shm import segment_of

SCRIPT = """
import os, sys
from pathlib import Path
import torch

out, noise = Path(sys.argv[1]), sys.argv[2:] == ["noise"]
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
kept, start = out / "kept.pt", 0
if kept.exists():
    start, state = torch.load(kept)
    model.load_state_dict(state)
for step in range(start, 120):
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    model(data).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        torch.save((step + 1, model.state_dict()), out / "new.pt")
        (out / "new.pt").replace(kept)
(out / "final.txt").write_text(repr(model.weight.tolist()) + (os.urandom(8).hex() if noise else ""))
"""


class Session:
    """A `supervise chaos` in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._texts = [folder / "stdout", folder / "stderr"]
        with self._texts[0].open("w") as out, self._texts[1].open("w") as err:
            self.process = start([SUPERVISE, "chaos", *arguments], folder, environment(), out, err)

    def end(self, code: int) -> tuple[str, str]:
        """What it said until it ended with `code`."""
        assert self.process.wait(240) == code, [text.read_text()[-3000:] for text in self._texts]
        out, err = (text.read_text() for text in self._texts)
        return out, err


def chaos(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The document of a session that ended with `code`; nothing of its runs is left."""
    out, _ = Session(folder, "--json", *arguments).end(code)
    assert_nothing_left(folder)
    body: dict[str, Any] = json.loads(out)
    return body


def assert_nothing_left(folder: Path) -> None:
    known = all_runs(folder / "runs")
    assert known
    for one in known:
        mark = str(one.spec["mark"])
        assert marked(mark) == [] and mark not in marks()
        assert not segment_of(mark).exists()


def struck(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of faults that were asked for, by kind and moment."""
    rows = [row for round_ in body["rounds"] for row in round_["rows"] if not row["helper"]]
    return {f"{re.split('[:@]', row['spec'])[0]} {row['moment']}": row for row in rows}


@pytest.mark.long
def test_faults_that_no_step_can_name(tmp_path: Path) -> None:
    """While ranks restore and while the standby is made: whoever is killed then, and
    whatever checkpoint is damaged, it is noticed, cleared away, and the end is the same to the bit."""
    faults, moments = "kill,kill-supervisor,torn", "restore,standby"
    # The part of the matrix that no other test has; the whole of it is ./run.sh chaos.
    body = chaos(tmp_path, "--matrix", "--seed", "5", "--faults", faults, "--moments", moments, "--", "--steps", "500")

    rows = struck(body)
    assert set(rows) == {f"{fault} {moment}" for fault in faults.split(",") for moment in moments.split(",")}
    assert body["ok"] and all(row["ok"] for row in rows.values())
    assert body["summary"]["same"] == body["summary"]["compared"] == len(body["rounds"])
    assert rows["kill restore"]["detected"] == "killed"
    assert rows["torn restore"]["detected"] == "checkpoint_quarantined"


def test_the_default_schedule(tmp_path: Path) -> None:
    """Three faults of all kinds, from a seed: the table, the page, exit code 0; what a later session replays is the
    same."""
    # Not while the standby warms: 300 steps may be over before there is a standby again.
    limits = "--hang-timeout", "3s", "--startup-timeout", "10s", "--moments", "early,step,save"
    out, _ = Session(
        tmp_path, "--count", "3", "--seed", "1", "--report", "page.html", *limits, "--", *TINY, "--steps", "300"
    ).end(0)

    heads, *lines = out.splitlines()
    assert heads.split()[:3] == ["#", "FAULT", "STEP"] and "the same bits" in out
    assert sum(line.endswith("pass") for line in lines) >= 3
    page = (tmp_path / "page.html").read_text()
    HTMLParser().feed(page)
    assert "<svg" in page and not re.search(r'(src|href)="', page)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(("noise", "code"), [((), 0), (("noise",), 107)], ids=["same", "other"])
def test_a_script_of_ones_own(tmp_path: Path, noise: tuple[str, ...], code: int) -> None:
    """An unmodified script that resumes by itself passes; one whose end is not determined ends with 107, and it is said
    in which file."""
    (tmp_path / "train.py").write_text(SCRIPT)
    more = ["--nproc", "1", "--seed", "2", "--count", "2", "--faults", "kill,exc", "--moments", "step"]
    body = chaos(tmp_path, *more, "--compare", "out/*.txt", "train.py", "{run}/out", *noise, code=code)

    (round_,) = body["rounds"]
    assert [row["ok"] for row in round_["rows"]] == [True, True]
    assert round_["comparison"]["same"] is (code == 0)
    if code:
        assert round_["comparison"]["difference"] == "final.txt differs"


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run: nothing of it lives on, and the code is that of a stop."""
    session = Session(tmp_path, "--seed", "1", "--", "--steps", "100000")
    until(lambda: list(tmp_path.glob("runs/chaos-*/attempts/*/rank0.log")))
    session.process.send_signal(signal.SIGINT)
    session.end(103)
    assert_nothing_left(tmp_path)
