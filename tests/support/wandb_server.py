"""A server of W&B on this machine, as far as a run of wandb 0.31 asks one: GraphQL, and streams of lines."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stored:
    """What the server has of a run."""

    def __init__(self) -> None:
        self.history: list[str] = []
        self.config = "{}"

    def __repr__(self) -> str:
        return f"{len(self.history)} rows"

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]

    def answer(self, name: str) -> dict[str, Any]:
        """As a server tells it to a process that goes on in the run."""
        last = self.history[-1:]
        return {
            **{"id": f"id-{name}", "name": name, "displayName": name, "config": self.config, "tags": [], "notes": None},
            **{"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(self.history)},
            **{"summaryMetrics": last[0] if last else "{}", "historyTail": json.dumps(last), "eventsTail": "[]"},
            **{"wandbConfig": '{"t": 1}', "sweepName": None, "description": None},
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
        }


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.runs: dict[str, Stored] = {}
        super().__init__(("127.0.0.1", 0), _Asked)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a program that logs here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "a" * 40, **QUIET}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A program that was killed is no error here."""

    def asked(self, question: str, about: dict[str, Any]) -> dict[str, Any]:
        name = str(about.get("name"))
        if question == "RunResumeStatus":
            run = self.runs.get(name)
            return {"model": {"id": "p", "name": "p", "bucket": run.answer(name) if run is not None else None}}
        if question == "UpsertBucket":
            inserted = name not in self.runs
            run = self.runs.setdefault(name, Stored())
            run.config = about.get("config") or run.config
            return {"upsertBucket": {"bucket": run.answer(name), "inserted": inserted}}
        if question == "Viewer":
            return {"viewer": {"id": "v", "entity": "e", "username": "v", "teams": {"edges": []}}}
        if question == "CreateRunFiles":
            where = f"http://127.0.0.1:{self.server_port}/upload"
            files = [{"name": each, "uploadUrl": where} for each in about["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def streamed(self, name: str, files: dict[str, Any]) -> None:
        """Lines of the run's files, each with the number of the first."""
        if (chunk := files.get("wandb-history.jsonl")) is not None:
            self.runs[name].history[chunk["offset"] :] = chunk["content"]


QUIET = {"WANDB_SILENT": "true", "WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true", "WANDB_CONSOLE": "off"}


class _Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.asked(asked["operationName"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.streamed(self.path.split("/")[-2], json.loads(body).get("files") or {})
        self._answer(answer)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({})

    do_GET = do_PUT

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # the other side was killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
