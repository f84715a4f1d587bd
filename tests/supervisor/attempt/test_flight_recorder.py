"""Dumps of torch's flight recorder: read without running code, and the rank that stands apart is named."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.attempt.evidence import Witness
from supervisor.attempt.recorder import dumps
from supervisor.attempt.recorder.plain_pickle import loads
from supervisor.core.evidence import Odd
from supervisor.core.hangs.collectives import odd, told
from supervisor.core.model import Cause, Exit, Verdict
from trainer.rank.hooks import flight_recorder
from trainer.rundir.layout import AttemptDir
from trainer.rundir.records.gate import Gate

RECORDED = (
    "c-pO0OK%fb6n1Qrgpfc&fP{occqEvY$4&yFRfW2$1Qy<~83|dV$;`=|E5>u@+(%H5kh(&&QeoRa(O=PS+JDd=&{g{vs`lJ#I}Ruk8!Ssc&-"
    ";Dn<?pL+8sSu>QrQQkg)FEN)>+$Zwp%n2o@BAiqC^&ZA|n^dh6>eKa8X6v2dZPuD=FxNPOx%<6%`jRHBE+-"
    "EWc>oTWj}d%Gz+A)kOCDQ7(3)5#luG41u(Xjn#CL-"
    "=APhi)L6_W+{)giJ%}07E<Pu=a3k&4|J+i50^#(oUY8r{@JJh@h7}E3Ssmzhfjj$I&~)Jx&Vby0yLfOH5l2k-"
    "&0(qrZdif^>Btwah^vCQkwwHhtn=b<luX;5I$!$kfjNXR0#&neJJ(=t~MwS49a4w*$%WYaKDU`mvII<8V069GxDxwW=G{HX}8j5c|d1<k8@D"
    "~Ek65Y*3vmo$8mn8;<5xq=W!wIegSv~8Ras|Ksn?KxY&7aY02ZcYQO2r)aLM*mKkut0ix_fz+a<cQMjCooHJ=@1^i$YBvPf3NNKfG@$12(X6"
    "+Jdb52t-"
    "0j;A<Nn6roobg>wVK271iOP(wybVvW#h`*XjeMuC`r!<!qBRdQbo0a4!ZWP5w_6XlzuMV((B9s9)OtkMJ=yWtBMs!DZ*(R+V7Xb2OgD!-"
    "W$Cna4mdsF$&(gEHlVQKQL<dhua9iREpIiV4^hH=+zbm%jUT7i|M}_tufPAj>`M_vX?b78YhJC}y+*ImsRM+who00Nl<d0GYj_^t<uW#OcMu"
    "`187JR6Or9INhS~Rf4dfj6fIBRprtgzZ5ZnM$3c{5US6+Zb@<lS;(G@Z6RyVwKOvLzzIHuk8Td2SY_R;1$-"
    "%OXnY@)uVt*76<TCMnb2_12lY5NDu+r%e@=Wq#E09QK`$lHKCd%W@%ui_eB!|QmXQ$-#HuJi8(-"
    "a_u;zrX$AyNHKf!#loAJnRGx>c%Dp*y>`ti<|FoKmw0Jt{#tE8zR?6$n)`EUj*6Tk(<M=l5v{wpAtR51w4z3&z{U$^mm4QTIh~w$~ua*<0;m"
    "M6zjO*_tUT9_|=Dw^`AdaeK^9p`YG$`XIX=#o#y|PQ{3w"
)
"""A dump of torch 2.13 after three all_reduce and a broadcast, compressed."""
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def recorded() -> bytes:
    return zlib.decompress(base64.b85decode(RECORDED))


@settings(max_examples=50)
@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol)) == value


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert type(loads(data + b".")) in (dict, list, tuple, str, int, float, bool, type(None))


class Call:
    def __reduce__(self) -> Any:
        return os.getpid, ()


@pytest.mark.parametrize("value", [Call(), Path("x"), {"a": [print]}, {1, 2}, b"bytes"])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    for protocol in (2, 4):
        with pytest.raises(ValueError):
            loads(pickle.dumps(value, protocol))


def test_a_recorded_dump() -> None:
    assert loads(recorded()) == pickle.loads(recorded())


def trace(*names: str, size: int = 4, first: int = 1) -> dict[str, Any]:
    """A dump with these collectives of the default group."""
    frames = [{"name": "all_reduce", "filename": "/x/torch/distributed/c10d.py", "line": 1}]
    frames.append({"name": "train", "filename": "/home/me/train.py", "line": 20})
    entries = [
        {"process_group": ["0", "default_pg"], "collective_seq_id": n, "profiling_name": f"nccl:{name}"}
        | {"input_sizes": [[size]], "frames": frames, "is_p2p": False}
        for n, name in enumerate(names, first)
    ]
    return {"version": "2.10", "entries": entries}


SUM = ("all_reduce", "all_reduce", "all_reduce")


@pytest.mark.parametrize(
    ("traces", "rank", "said"),
    [
        ({0: trace(*SUM), 1: trace(*SUM[:2])}, 1, "has not come to collective 3, all_reduce of [[4]], where"),
        ({0: trace(*SUM), 1: trace(*SUM), 2: trace(*SUM[:1])}, 2, "has not come to collective 2"),
        ({0: trace(*SUM), 1: trace(*SUM[:2], "broadcast"), 2: trace(*SUM)}, 1, "called broadcast of [[4]] as"),
        ({0: trace(*SUM), 1: trace(*SUM, size=8), 2: trace(*SUM)}, 1, "called all_reduce of [[8]] as"),
        ({0: trace(*SUM), 1: trace(*SUM)}, None, ""),
        # Two ranks that called different things: nothing tells which one is wrong.
        ({0: trace(*SUM), 1: trace(*SUM[:2], "broadcast")}, None, ""),
        ({0: trace(*SUM, first=900), 1: trace(*SUM, first=900)}, None, ""),
        ({0: trace(), 1: trace(*SUM)}, None, ""),
        ({0: "x", 1: {"entries": [3, {"collective_seq_id": "x"}]}}, None, ""),
    ],
)
def test_the_rank_that_stands_apart(traces: dict[int, Any], rank: int | None, said: str) -> None:
    found = odd(traces)
    assert (found.rank if found else None) == rank
    assert found is None or (said in found.text and "in train (train.py:20)" in found.text)


def test_the_verdict_names_it() -> None:
    found = Odd(1, "rank 1 has not come to collective 3")
    waited = Verdict(Cause.NCCL_OR_GLOO_TIMEOUT, "in vain", 9.0, rank=0)
    assert told(waited, found).rank == 1 and found.text in told(waited, found).reason
    killed = Verdict(Cause.KILLED, "by SIGKILL", 9.0, rank=0)
    assert told(killed, found) is killed


def test_a_time_out_in_the_first_step_is_read(tmp_path: Path) -> None:
    """Of all ranks that have registered, though none has finished a step."""
    folder = AttemptDir(tmp_path)
    for rank, count in ((0, 3), (1, 2)):
        folder.trace(rank).write_text(json.dumps(trace(*SUM[:count])))
    witness = Witness(folder, 0, "mark", [])

    found = witness.hear((Exit(0, -6, 9.0),), (), {None: 1, -1: 2, 0: 3, 1: 4}, {}, {}).odd

    assert found is not None and found.rank == 1


def test_a_dump_is_asked_for(tmp_path: Path) -> None:
    """Of a rank that has a pipe; one without, or with a file in its place, is not waited for."""
    folder = AttemptDir(tmp_path)
    folder.trace(0).write_text(json.dumps(trace(*SUM)))
    folder.trace_pipe(2).write_text("")
    os.mkfifo(folder.trace_pipe(1))
    # Opened before there is a writer, but read as torch reads it: of a writer that has not written yet, it waits.
    fd = os.open(folder.trace_pipe(1), os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)

    def answer() -> None:
        while not os.read(fd, 128):
            pass
        folder.trace(1).write_bytes(pickle.dumps(trace(*SUM[:2]), 2))

    thread = threading.Thread(target=answer)
    try:
        assert dumps.read(folder, [0, 1]) is None
        thread.start()
        dumps.ask(folder, [0, 1, 2])
        thread.join(60)
        found = dumps.read(folder, [0, 1, 2])
    finally:
        os.close(fd)
    assert found is not None and found.rank == 1


def test_ranks_write_into_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a driver, and the user has said nothing else."""
    names = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE")
    for name in (*names, "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    folder = AttemptDir(tmp_path / "0003")

    def told_by_us() -> dict[str, str]:
        flight_recorder.follow(folder)
        return {name: os.environ.pop(name) for name in names if name in os.environ}

    monkeypatch.setattr(flight_recorder, "_DRIVER", tmp_path / "none")
    assert told_by_us() == {}
    monkeypatch.setattr(flight_recorder, "_DRIVER", tmp_path)
    monkeypatch.setattr(flight_recorder, "_version", lambda: (2, 13))
    assert told_by_us() == {names[0]: folder.traces}
    monkeypatch.setattr(flight_recorder, "_version", lambda: (2, 6))
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
    assert told_by_us() == {names[1]: folder.traces, names[2]: folder.traces}
    monkeypatch.setenv(names[1], "/tmp/mine")
    flight_recorder.follow(folder)
    assert os.environ[names[1]] == "/tmp/mine" and names[0] not in os.environ
    del os.environ[names[2]]


def test_a_rank_of_a_standby_has_its_pipe_in_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt has no folder before the release, and none is made: a folder is an attempt. After the release the
    pipe is there, whether torch has made it by then or makes it later; what the user has set stays."""
    pipe = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
    for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", pipe):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "2000")
    monkeypatch.setattr(flight_recorder, "_DRIVER", tmp_path)
    gate, folder = Gate(tmp_path / "group"), AttemptDir(tmp_path / "0003")
    gate.path.mkdir()

    flight_recorder.follow(folder, gate.traces)
    made = Path(f"{os.environ[pipe]}1.pipe")
    os.mkfifo(made)
    assert made.parent == gate.path and not folder.path.exists()
    folder.path.mkdir()
    flight_recorder.move(1, gate.traces, folder)

    assert folder.trace_pipe(1).is_fifo() and os.environ[pipe] == folder.traces
    flight_recorder.move(0, gate.traces, folder)
    monkeypatch.setenv(pipe, "/tmp/mine")
    flight_recorder.follow(folder, gate.traces)
    flight_recorder.move(1, gate.traces, folder)
    assert os.environ[pipe] == "/tmp/mine"
