"""Errors of the trainer that are the user's to mend."""

from __future__ import annotations


class UsageError(Exception):
    """The text is one line: what is wrong and what would be right."""

    exit_code = 2
