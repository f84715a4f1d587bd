"""The lines of an error's message that say something. A person reads these; every line is judged."""

from __future__ import annotations

import re

_LONGEST = 400
# The lines that torch adds to each error of a GPU, and C++'s own trace.
_NOISE = re.compile(
    r"Search for `(cuda|hip)\w*' in |(CUDA|HIP) kernel errors might be asynchronously|For debugging consider passing "
    r"|Compile with `TORCH_USE_\w+_DSA`|Device-side assertion tracking|Exception raised from .* \(most recent call"
    r"|frame #\d+: |C\+\+ CapturedTraceback|This may indicate a possible application crash"
)
_NCCL_MORE = re.compile(r"nccl[A-Z]\w+: |Last error:")
_TRACEBACK = ("Traceback (most", "Original Traceback (most")


def gist(message: str) -> str:
    """The main line of a message: the first. With the last one if the traceback of another process is between them;
    with all that NCCL says."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    if any(line.startswith(_TRACEBACK) for line in lines):
        return f"{lines[0][:100]} {lines[-1]}"[:_LONGEST]
    if any(map(_NCCL_MORE.match, lines)):
        return " ".join(line for line in lines if not _NOISE.match(line))[:_LONGEST]
    return lines[0][:_LONGEST]


def continues(line: str, before: str) -> bool:
    """Whether `line` of a log belongs to the message that has the line `before`."""
    return bool(_NOISE.match(line) or _NCCL_MORE.match(line) or before.startswith("Last error:"))
