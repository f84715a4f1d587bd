"""What a shell does to the streams of a command."""

from __future__ import annotations

UNREAD = "exec 2> >(exec true); wait $!"
"""Nobody reads what the command says on stderr."""
