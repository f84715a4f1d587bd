"""Slurm's lists of nodes are written out as Slurm itself writes them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.core.nodes.hostlist import MOST, expand

NAME = st.from_regex(r"[a-z][a-z-]{0,6}", fullmatch=True)
NUMBERS = st.tuples(st.integers(0, 120), st.integers(0, 5), st.integers(1, 4))


@st.composite
def item(draw: st.DrawFn) -> tuple[str, list[str]]:
    """One item of a list, and its names: at most one bracket, at the end, since scontrol knows no others everywhere."""
    prefix = draw(NAME)
    if draw(st.booleans()):
        return prefix, [prefix]
    texts, names = [], []
    for first, more, width in draw(st.lists(NUMBERS, min_size=1, max_size=3)):
        start = str(first).zfill(width)
        texts.append(f"{start}-{str(first + more).zfill(width)}" if more else start)
        names += [prefix + str(number).zfill(width) for number in range(first, first + more + 1)]
    return f"{prefix}[{','.join(texts)}]", names


@given(st.lists(item(), min_size=1, max_size=4))
@example([("gpu[008-011]", ["gpu008", "gpu009", "gpu010", "gpu011"])])
def test_every_name_once_and_in_order(items: list[tuple[str, list[str]]]) -> None:
    """What was put together comes apart again."""
    assert expand(",".join(text for text, _ in items)) == [name for _, names in items for name in names]


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("a", ["a"]),
        ("n[01-03,7]-ib,x5", ["n01-ib", "n02-ib", "n03-ib", "n7-ib", "x5"]),
        ("r[1-2]c[3-4]", ["r1c3", "r1c4", "r2c3", "r2c4"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("a,a", ["a", "a"]),
    ],
)
def test_brackets(nodelist: str, names: list[str]) -> None:
    """Several brackets, and text after one."""
    assert expand(nodelist) == names


@pytest.mark.parametrize("text", ["", ",", "a,,b", "n[1-", "n[2-1]", "n[]", "n]", "n[a-b]", "n[0-99999999]"])
def test_no_list(text: str) -> None:
    """What is no list of nodes is refused, not guessed."""
    with pytest.raises(ValueError, match=r"no list|no range|a list of"):
        expand(text)


@given(st.text(alphabet="ab[]-,019", max_size=20))
def test_any_text(text: str) -> None:
    """Names without brackets, or ValueError."""
    try:
        names = expand(text)
    except ValueError:
        return
    assert names and len(names) <= MOST and not any(set(name) & set("[],") for name in names)


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="scontrol is not installed here: nobody to compare with")
def test_as_scontrol_does(tmp_path: Path) -> None:
    """Slurm's own expansion agrees."""
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=test\nSlurmctldHost=localhost\nNodeName=localhost\n")

    def theirs(nodelist: str) -> list[str]:
        command = ["scontrol", "show", "hostnames", nodelist]
        env = {**os.environ, "SLURM_CONF": str(conf)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()

    @given(st.lists(item(), min_size=1, max_size=4))
    @settings(max_examples=25)
    def agrees(items: list[tuple[str, list[str]]]) -> None:
        nodelist = ",".join(text for text, _ in items)
        assert expand(nodelist) == theirs(nodelist)

    agrees()
    assert expand("r[1-2]c[3-4]") == theirs("r[1-2]c[3-4]")
