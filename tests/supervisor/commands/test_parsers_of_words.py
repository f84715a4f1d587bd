"""Whatever people write in options, supervise.toml, durations and faults: a value of the right kind, or one clear
line."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.commands import cli, launch
from supervisor.commands.options import read_config
from supervisor.errors import Refusal
from supervisor.run import spec as specs
from tests.support.mangled import FAST, bounded, mangled
from tests.trainer.rundir.test_parsers import SPEC
from trainer.errors import UsageError
from trainer.gpt.config import TrainConfig, parse
from trainer.rundir.duration import LONGEST, parse_duration
from trainer.rundir.records import faults
from trainer.rundir.records.faults import Fault, FaultSpecError, parse_fault


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


TOML = b"""nproc = 2
max-restarts = 5
window = "1h"
backoff = "1s:5m"
grace = 45
hang-timeout = "off"
inject = ["kill:rank=1@step=40"]
standby = false
resume-args = "--resume yes"
name = "gpt"
"""
TOML_VALUES = st.sampled_from(
    """nan inf -inf -1 1e300 true [] [1] ["x"] {} 1979-05-27T07:32:00Z "" "\\u0000" [[[]]] 0x7fffffffffffffffffff 2.5
    "1s" "-1s" "99999999999999999999d" [1,2] "it's" [[[["x" """.split()
)


@st.composite
def tomls(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(mangled(TOML))
    lines = TOML.decode().splitlines()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = f"{lines[at].split(' = ')[0]} = {draw(TOML_VALUES)}"
    return "\n".join(lines).encode()


class _Accepted(Exception):
    pass


@settings(parent=FAST, max_examples=150)
@given(raw=tomls())
@example(raw=b"grace = nan")
@example(raw=b"grace = -5")
@example(raw=b'resume-args = "it\'s"')
@example(raw=b"a = " + b"[" * 5000)
@example(raw=b"nproc = 1" + b"0" * 5000)
def test_supervise_toml(raw: bytes, folder: Path) -> None:
    """The launch gets options of the right kinds, or says in one line what is wrong and exits with 2."""
    path = folder / "supervise.toml"
    path.write_bytes(raw)
    with contextlib.suppress(Refusal):
        assert isinstance(read_config(path, {"nproc": False}), dict)
    seen: list[dict[str, Any]] = []

    def resolve(ctx: Any, given: dict[str, Any], made: Any) -> Any:
        seen.append(given)
        raise Refusal("accepted")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said, bounded():
        patch.setattr(launch, "_resolve", resolve)
        assert cli.run(["launch", "--config", str(path), "train.py"]) == 2
    assert "Traceback" not in said.getvalue()
    assert len(said.getvalue().splitlines()) <= 2
    for given_ in seen:
        spec = {**SPEC, **{key: value for key, value in given_.items() if key in specs.NAMES}}
        assert 1 <= given_["nproc"] < 1000
        for name in ("window", "grace", "startup_timeout"):
            assert 0 <= given_[name] <= LONGEST
        spec["backoff"], spec["inject"] = list(given_["backoff"]), list(given_["inject"])
        specs.restore(spec)


@FAST
@given(st.text(max_size=30) | st.from_regex(r"\A *[0-9]{1,400}(\.[0-9]{1,400})?(ms|s|m|h|d|)\n?\Z"))
def test_durations(text: str) -> None:
    """Seconds that can be waited for, or a ValueError in one line."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        assert str(error)
        return
    assert 0 <= seconds <= LONGEST


@FAST
@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations_mean_what_they_say(count: int, unit: tuple[str, float]) -> None:
    seconds = count * unit[1]
    if seconds <= LONGEST:
        assert parse_duration(f"{count}{unit[0]}") == pytest.approx(seconds)


@st.composite
def fault_specs(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from([*faults.KINDS, "", "kil"]))
    values_ = st.sampled_from(["0", "1", "all", "latest", "30s", "-1", "", "1e9", "٣", "9" * 12, "9" * 400])
    pairs = draw(
        st.lists(st.tuples(st.sampled_from(["rank", "checkpoint", "code", "seconds", "rnak"]), values_), max_size=3)
    )
    when = draw(
        st.lists(st.tuples(st.sampled_from(["step", "after", "phase", "at"]), values_ | st.just("save")), max_size=2)
    )
    text = kind + (":" + ",".join("=".join(p) for p in pairs) if pairs else "")
    return text + ("@" + ",".join("=".join(w) for w in when) if when else "")


@settings(parent=FAST, max_examples=400)
@given(fault_specs() | st.text(max_size=40))
def test_inject_specs(text: str) -> None:
    """A Fault whose own text means the same, or a FaultSpecError in one line."""
    try:
        fault = parse_fault(text)
    except FaultSpecError as error:
        assert str(error)
        return
    assert parse_fault(fault.text) == fault
    assert fault.kind in faults.KINDS
    assert fault.rank is None or fault.rank >= 0
    assert 0 <= fault.code < 256
    assert fault.after is None or fault.after <= LONGEST


@st.composite
def sound_faults(draw: st.DrawFn) -> tuple[str, Fault]:
    kind, rank = draw(st.sampled_from(faults.KINDS)), draw(st.none() | st.integers(0, 999))
    code, step = draw(st.integers(0, 255)), draw(st.none() | st.integers(0, 10**9 - 1))
    text = f"{kind}:rank={'all' if rank is None else rank},code={code}" + ("" if step is None else f"@step={step}")
    return text, Fault(kind, rank, code=code, step=step, text=text)


@FAST
@given(sound_faults())
def test_inject_specs_mean_what_they_say(sound: tuple[str, Fault]) -> None:
    assert parse_fault(sound[0]) == sound[1]


@FAST
@given(
    st.lists(
        st.sampled_from(["--steps", "--lr", "--amp", "--data", "--snapshot-every", "--nope"]) | st.text(max_size=6)
    )
)
def test_flags_of_the_trainer(arguments: list[str]) -> None:
    """A config, or a UsageError."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            assert isinstance(parse(arguments), TrainConfig)
        except UsageError as error:
            assert str(error)
        except SystemExit:
            assert {"-h", "--help"} & set(arguments) or any(re.match("-h", a) for a in arguments)
