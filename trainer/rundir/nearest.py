"""Suggestions for an unknown word."""

from __future__ import annotations

from collections.abc import Collection


def did_you_mean(word: str, known: Collection[str], otherwise: str = "") -> str:
    """`did you mean 'kill'?` if one of `known` is similar to `word`; else `otherwise`, or all known words."""
    from difflib import get_close_matches  # Only a mistake needs this import. It would slow the start of every rank.

    close = get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"known: {' '.join(known)}"
