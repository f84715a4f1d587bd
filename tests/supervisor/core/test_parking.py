"""Where a standby waits, for all that is known of its program."""

from __future__ import annotations

import pytest

from supervisor.core.standby.parking import TRIES, Facts, Place, where

ABLE = Facts(reached=True, asks=True)


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
    ],
)
def test_place(asked: str, facts: Facts, place: Place, why: str) -> None:
    """The place is restore() where the program, or its user, asks for it and nothing speaks against it; what does is
    said where somebody has asked."""
    found, said = where(asked, facts)

    assert found is place
    assert why in said and bool(why) == bool(said)
