"""The words that a user's --resume-args become in one attempt. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PLACEHOLDER = re.compile(r"\{(checkpoint_dir|checkpoint|step)\}")


@dataclass(frozen=True, slots=True)
class Offer:
    """The values of the placeholders."""

    checkpoint: str
    checkpoint_dir: str
    """The checkpoint itself if it is a folder, else the folder that contains it."""
    step: int
    """-1 if the step is not known."""


def has_placeholders(words: Sequence[str]) -> bool:
    return any(_PLACEHOLDER.search(word) for word in words)


def filled(words: Sequence[str], offer: Offer | None) -> tuple[str, ...]:
    """`words` with their placeholders filled. If one cannot be filled, no words at all: half of them would mean
    something else."""
    needed = {name for word in words for name in _PLACEHOLDER.findall(word)}
    if needed and (offer is None or ("step" in needed and offer.step < 0)):
        return ()
    return tuple(_PLACEHOLDER.sub(lambda found: str(getattr(offer, found[1])), word) for word in words)


def resumed(note: Mapping[str, Any]) -> str:
    """A sentence from a rank's `note`: the save that it resumed from. Empty for a checkpoint of ours, which has its own
    words."""
    if note.get("source") != "script":
        return ""
    at = note.get("saved_step")
    when = f"saved at step {at}" if isinstance(at, int) and at >= 0 else "saved at a step that is not known"
    return f"resumed from {note.get('path')}, {when}"


def started_over(note: Mapping[str, Any]) -> str:
    """A sentence about the save that a rank has not loaded."""
    at = note.get("step")
    when = f" at step {at}" if isinstance(at, int) and at >= 0 else ""
    kept = f", and the old save is kept in {note['kept']}" if note.get("kept") else ""
    missed = f"it saved {note.get('path')}{when} and did not load it"
    return f"{missed}: it starts again from 0{kept}; see docs/your-own-script.md"


def are_in_doubt(words: Sequence[str], saved: bool, failed_at_start: bool) -> bool:
    """Whether the attempt may have failed because of these words. They were there before any save was seen, and the
    attempt did not reach its first step. Then the next attempt is tried without them."""
    return bool(words) and failed_at_start and not saved and not has_placeholders(words)
