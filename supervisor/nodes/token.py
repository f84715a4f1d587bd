"""The token of a run: whoever has it belongs to the run. It is in RUN/token, or in the environment of all nodes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from supervisor.errors import Refusal
from trainer.rundir.layout import RunDir

VARIABLE = "SUPERVISE_TOKEN"
_SHORTEST = 16
_MODE = 0o600


def token_of(run: RunDir, environ: Mapping[str, str], create: bool) -> bytes:
    """The token. `create`: it is made if there is none. FileNotFoundError if there is none, Refusal if it cannot be
    used."""
    if given := environ.get(VARIABLE):
        return _long_enough(given.encode(), VARIABLE)
    path = run.path / "token"
    if create:
        _make(path)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & 0o077 or found.st_uid != os.geteuid():
                raise Refusal(f"{path} must belong to you and be read by nobody else: chmod 600 {path}")
            return _long_enough(file.read(4096).strip(), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None


def _make(path: Path) -> None:
    """There is a whole token at `path`, whoever else makes one now."""
    temporary = path.with_name(f".token.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            # A link never replaces what is there.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise Refusal(f"{path} cannot be made: {error.strerror}") from None


def _long_enough(token: bytes, where: str) -> bytes:
    if len(token) < _SHORTEST:
        raise Refusal(f"the token in {where} is too short: it needs {_SHORTEST} characters; try: openssl rand -hex 32")
    return token
