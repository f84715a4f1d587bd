"""`supervise web`: the pages of the runs here, live."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

import click

from supervisor.commands.status import command_of
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run.runs import RUNS
from trainer.rundir.files.untrusted_files import open_file, read_file

_LONG = 16
"""The fewest characters of a token."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), required=False)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8470, show_default=True, help="On 127.0.0.1; 0: any free."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the token in this file, for a reader of /metrics. It is made if it is missing.",
)
def command(folder: Path | None, port: int, token_file: Path | None) -> None:
    """Serve the pages of the runs in FOLDER (./runs if omitted) to browsers on this machine, until Ctrl-C.

    The printed address has a token. Nobody gets in without it, and nothing can be changed through the pages. /metrics
    has the numbers for Prometheus, with the token as bearer token. From another machine: ssh -L 8470:127.0.0.1:8470
    """
    try:
        import uvicorn

        from supervisor.web.app import app
    except ImportError as missing:
        raise Refusal(f"supervise web needs {missing.name}: pip install 'supervise[web]'") from None
    from supervisor.web.guard import Guard
    from supervisor.web.runs import Runs

    token = _token(token_file) if token_file else secrets.token_urlsafe(24)
    with _listening(port) as server:
        port = server.getsockname()[1]
        pages = app(Runs(folder or RUNS), command_of, lambda: web.should_exit)
        click.echo(f"http://127.0.0.1:{port}/?token={token}")
        click.echo("Ctrl-C ends the pages; the runs go on", err=True)
        # No access log: it would have the token.
        config = uvicorn.Config(
            Guard(pages, port, token),
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=10,
        )
        web = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            web.run(sockets=[server])


def _listening(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
        # Whoever opens the printed address at once waits for the server instead of being refused.
        server.listen(64)
    except OSError as error:
        server.close()
        raise Refusal(f"port {port} cannot be had: {error.strerror}; give another --port, or 0 for any") from None
    return server


def _token(path: Path) -> str:
    """The token in the file, which is its owner's alone."""
    try:
        try:
            fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            token = read_file(path, 4096).decode("ascii", "replace").strip()
        else:
            token = secrets.token_urlsafe(24)
            with os.fdopen(fd, "w") as file:
                file.write(token + "\n")
        open_to_others = path.stat().st_mode & 0o077
    except OSError as error:
        raise Refusal(f"--token-file {path}: {error.strerror or error}") from None
    if open_to_others:
        raise Refusal(plain(f"--token-file {path}: others may read it; chmod 600 {path}"))
    if len(token) < _LONG or not all(char.isalnum() or char in "-_" for char in token):
        raise Refusal(plain(f"--token-file {path}: a token is {_LONG} or more letters, digits, - and _"))
    return token
