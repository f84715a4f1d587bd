"""For anything that happens to the bytes of a link: what is read is what was sent, in order, up to the first harm."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.nodes.wire.frames import LIMIT, Forged, Opener, Sealer

KEY, OTHER = b"k" * 32, b"o" * 32
BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=6)
HARMS = ("none", "cut", "flip", "drop", "twice", "swap", "strange", "longer")


def harmed(frames: list[bytes], harm: str, rng: random.Random) -> tuple[bytes, int]:
    """The bytes after the harm, and how many bodies before it are whole."""
    at = rng.randrange(len(frames))
    frames = list(frames)
    stream = b"".join(frames)
    if harm == "cut":
        byte = rng.randrange(len(stream))
        return stream[:byte], _whole(frames, byte)
    if harm == "flip":
        byte = rng.randrange(len(stream))
        return stream[:byte] + bytes([stream[byte] ^ (1 << rng.randrange(8))]) + stream[byte + 1 :], _whole(
            frames, byte
        )
    if harm == "drop" and at < len(frames) - 1:
        del frames[at]
    elif harm == "twice":
        frames.insert(at + 1, frames[at])
        at += 1
    elif harm == "swap" and at < len(frames) - 1:
        frames[at], frames[at + 1] = frames[at + 1], frames[at]
    elif harm == "strange":
        frames.insert(at, Sealer(OTHER).seal(b"x"))
    elif harm == "longer":
        frames.insert(at, (LIMIT + 1 + rng.randrange(1 << 20)).to_bytes(4, "big") + bytes(16))
    else:
        return stream, len(frames)
    return b"".join(frames), at


def _whole(frames: list[bytes], byte: int) -> int:
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    return sum(1 for end in ends if end <= byte)


@settings(max_examples=400)
@given(BODIES, st.sampled_from(HARMS), st.randoms(use_true_random=False))
def test_only_what_was_sent_is_read(bodies: list[bytes], harm: str, rng: random.Random) -> None:
    """The bodies before the harm are read, in any pieces; nothing after it ever is."""
    sealer = Sealer(KEY)
    stream, whole = harmed([sealer.seal(body) for body in bodies], harm, rng)
    opener, read, forged = Opener(KEY), list[bytes](), False
    while stream:
        size = rng.randrange(1, len(stream) + 1)
        piece, stream = stream[:size], stream[size:]
        try:
            read += opener.feed(piece)
        except Forged:
            forged = True
            break
    assert read == bodies[: len(read)]
    # A piece that holds a forged frame is given up as a whole; without one nothing is missing.
    assert len(read) <= whole and (forged or len(read) == whole)
    if harm in ("twice", "strange", "longer"):
        assert forged


@pytest.mark.parametrize("body", [b"", b"gone"])
def test_a_reflected_frame_is_forged(body: bytes) -> None:
    """The two directions have keys of their own."""
    with pytest.raises(Forged):
        Opener(OTHER).feed(Sealer(KEY).seal(body))


def test_what_is_announced_is_not_kept() -> None:
    """A length beyond the limit ends the link at once, and a body beyond it is not sent."""
    with pytest.raises(Forged, match="announced"):
        Opener(KEY).feed((LIMIT + 1).to_bytes(4, "big") + bytes(16))
    with pytest.raises(ValueError, match="too long"):
        Sealer(KEY).seal(bytes(LIMIT + 1))
    assert Opener(KEY).feed(Sealer(KEY).seal(bytes(LIMIT))) == [bytes(LIMIT)]
