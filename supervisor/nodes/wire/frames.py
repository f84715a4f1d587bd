"""The frames of a link: a length, a MAC and a body. Each body is proved to be the next one of the other side.

    length of the body    4 bytes, big-endian
    MAC                  16 bytes: HMAC-SHA256 over the frame's number and the body, with a key of this direction
    body

The numbers are not sent. So a frame that is repeated, left out, moved, cut, changed or sent back has a wrong MAC, and
ends the link. The bodies are not encrypted.
"""

from __future__ import annotations

import hmac
import struct

LIMIT = 4 << 20
"""The most bytes of a body."""
MAC = 16
_HEAD = struct.Struct(f">I{MAC}s")
_NUMBER = struct.Struct(">Q")


class Forged(Exception):
    """What came is not the next frame of the other side."""


class Sealer:
    """The frames of one direction, as they are sent."""

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0

    def seal(self, body: bytes) -> bytes:
        """The next frame. ValueError for a body that is too long."""
        if len(body) > LIMIT:
            raise ValueError(f"a message of {len(body)} bytes is too long: {LIMIT} is the most")
        mac = _mac(self._key, self._number, body)
        self._number += 1
        return _HEAD.pack(len(body), mac) + body


class Opener:
    """The frames of one direction, as they come."""

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole now. Forged if one is not what the other side has sent next; the bodies before it
        are lost, and nothing may be fed any more."""
        self._rest += data
        found, at = list[bytes](), 0
        while len(self._rest) - at >= _HEAD.size:
            length, mac = _HEAD.unpack_from(self._rest, at)
            if length > LIMIT:
                raise Forged(f"a message of {length} bytes was announced")
            if len(self._rest) - at - _HEAD.size < length:
                break
            body = bytes(self._rest[at + _HEAD.size : at + _HEAD.size + length])
            if not hmac.compare_digest(mac, _mac(self._key, self._number, body)):
                raise Forged(f"message {self._number} is not from the other side")
            self._number += 1
            found.append(body)
            at += _HEAD.size + length
        del self._rest[:at]
        return found


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + body, "sha256")[:MAC]
