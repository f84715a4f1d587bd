"""Where a standby waits, for all that is known of its program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core.standby.parking import TRIES, Facts, Gpu, Place, where

ABLE = Facts(reached=True, asks=True)
GB = 1 << 30


def on(*gpus: Gpu, **more: Any) -> Facts:
    return replace(ABLE, gpus=gpus, **more)


@pytest.mark.parametrize(
    ("asked", "facts", "place", "why"),
    [
        ("auto", ABLE, Place.RESTORE, ""),
        ("auto", Facts(reached=True), Place.START, ""),
        ("restore", Facts(reached=True), Place.RESTORE, ""),
        ("start", ABLE, Place.START, ""),
        ("auto", Facts(), Place.START, ""),
        ("restore", Facts(), Place.START, "has not called"),
        ("auto", Facts(reached=True, asks=True, steps=3), Place.START, "3 optimizer steps"),
        ("restore", Facts(reached=True, asks=True, spawns=True), Place.START, "starts its ranks itself"),
        ("auto", Facts(reached=True, asks=True, failures=("a",) * (TRIES - 1)), Place.RESTORE, ""),
        ("auto", Facts(reached=True, asks=True, failures=("a", "b")), Place.START, "2 times: b"),
        ("auto", on(Gpu("a", 10 * GB, 12 * GB)), Place.RESTORE, ""),
        ("auto", on(Gpu("a", 10 * GB, 10 * GB)), Place.START, "11.8 GB of GPU memory, and 10.7 GB are free"),
        ("restore", on(Gpu("a", 10 * GB, 10 * GB)), Place.RESTORE, ""),
        ("auto", on(Gpu("a", 10 * GB, 12 * GB), Gpu("a", 10 * GB, 12 * GB)), Place.START, "of GPU memory"),
        ("auto", on(Gpu("a", 10 * GB, 12 * GB), Gpu("b", 10 * GB, 12 * GB)), Place.RESTORE, ""),
        ("restore", on(Gpu("a", 1, GB, exclusive=True)), Place.START, "one process at a time"),
        ("restore", on(Gpu("a", 1, GB), crowded="GPU memory"), Place.START, "ran out of GPU memory"),
        ("auto", replace(ABLE, used=10 * GB, available=10 * GB), Place.START, "of memory, and 10.7 GB are available"),
        ("auto", replace(ABLE, used=10 * GB, available=12 * GB), Place.RESTORE, ""),
    ],
)
def test_place(asked: str, facts: Facts, place: Place, why: str) -> None:
    """The place is restore() where the program, or its user, asks for it and nothing speaks against it; what does is
    said where somebody has asked."""
    found, said = where(asked, facts)

    assert found is place
    assert why in said and bool(why) == bool(said)
