"""How two supervisors prove to each other that they have the run's token, before anything else is said.

    caller      magic, nonce, MAC of both             36 bytes; anything else is closed without a word
    listener    nonce, MAC of both nonces             32 bytes
    caller      its first frame, with an empty body   proves that it is no replay

Each side gives a nonce, so a recording of either side proves nothing. The keys of the two directions differ, so
nothing can be sent back. Pure: nonces are arguments.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from supervisor.nodes.wire.frames import MAC

NONCE = 16
_MAGIC = b"SPV1"
CALL = len(_MAGIC) + NONCE + MAC
ANSWER = NONCE + MAC


class Stranger(Exception):
    """The other side does not have the token."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one link: of what the caller sends, and of what the listener sends."""

    caller: bytes
    listener: bytes


def call(token: bytes, nonce: bytes) -> bytes:
    """The first words of the caller."""
    return _MAGIC + nonce + _proof(token, b"call", nonce)


def heard(token: bytes, said: bytes) -> bytes | None:
    """The caller's nonce, from its first words so far. None if they are not whole yet. Stranger if nobody with the
    token says them."""
    if not said.startswith(_MAGIC[: len(said)]) or len(said) > CALL:
        raise Stranger
    if len(said) < CALL:
        return None
    nonce = said[len(_MAGIC) : -MAC]
    if not hmac.compare_digest(said[-MAC:], _proof(token, b"call", nonce)):
        raise Stranger
    return nonce


def answer(token: bytes, callers: bytes, nonce: bytes) -> bytes:
    """The listener's answer to a caller with that nonce."""
    return nonce + _proof(token, b"answer", callers, nonce)


def answered(token: bytes, callers: bytes, said: bytes) -> Keys:
    """The keys, from the listener's whole answer. Stranger if it does not have the token."""
    nonce = said[:NONCE]
    if len(said) != ANSWER or not hmac.compare_digest(said[NONCE:], _proof(token, b"answer", callers, nonce)):
        raise Stranger
    return keys(token, callers, nonce)


def keys(token: bytes, callers: bytes, listeners: bytes) -> Keys:
    """The keys of the link with these nonces."""
    session = hmac.digest(token, b"session" + callers + listeners, "sha256")
    return Keys(hmac.digest(session, b"caller", "sha256"), hmac.digest(session, b"listener", "sha256"))


def _proof(token: bytes, word: bytes, *nonces: bytes) -> bytes:
    return hmac.digest(token, word + b"".join(nonces), "sha256")[:MAC]
