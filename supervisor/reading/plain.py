"""Log text that cannot control a terminal."""

from __future__ import annotations

import re

# A sequence begins with ESC and a letter, or with one C1 character. OSC and the like end with BEL or ST.
_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]+[0-~]"
    "|\x1b[0-OQ-WYZ\\\\`-~]"
)
_HOLE = re.compile("\0{8,}")
# C0 except tab, DEL, C1; line and paragraph separators; bidirectional marks, embeddings, overrides and isolates;
# surrogates, which no output encoding accepts.
_CONTROL = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def plain(text: str) -> str:
    """`text` without escape sequences. Every other control character but tab is written out, as in \\x07."""
    if text.isprintable() or not _CONTROL.search(text):
        return text
    text = _HOLE.sub(lambda match: f"[{len(match[0])} NUL bytes]", text)
    return _CONTROL.sub(_visible, _SEQUENCE.sub("", text))


def plain_lines(text: str) -> str:
    """plain() of each line of `text`."""
    return "\n".join(map(plain, text.split("\n")))


def decode(data: bytes) -> str:
    """One line of a log as text for any terminal. Bytes that are not UTF-8 are written out, as in \\xff."""
    return plain(data.decode("utf-8", "backslashreplace"))
