"""The ranks of one group as forks of this process; how each ends is taken from the process itself.

In place of torch's MultiprocessContext, whose ranks report their 0 by a queue and then wait for all the others: a rank that
leaves by os._exit, that has become another program, or that has closed its descriptors never does. And a queue needs
semaphores, and so /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from torch.distributed.elastic.multiprocessing import PContext, RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from ..process.children import exit_code, send

_TICK = 0.02


class ForkedRanks(PContext):
    """By local rank, a fork each. Nobody is reaped before all have ended, so that whoever asks can see how it went."""

    def __init__(
        self,
        name: str,
        entrypoint: Callable[..., object],
        args: dict[int, tuple[Any, ...]],
        envs: dict[int, dict[str, str]],
        logs_specs: Any,
        log_line_prefixes: dict[int, str] | None = None,
        **_: Any,
    ) -> None:
        """As torch calls it; what else it hands over is about queues, redirections and NUMA: there is none of them here."""
        super().__init__(name, entrypoint, args, envs, logs_specs, log_line_prefixes)
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}

    def _start(self) -> None:
        # Whatever is in a buffer now would be written by every rank.
        sys.stdout.flush()
        sys.stderr.flush()
        for local in range(self.nprocs):
            pid = os.fork()
            if pid == 0:
                self._live(local)
            self._pids[local] = pid

    def _live(self, local: int) -> NoReturn:
        code = 1
        try:
            os.environ.update(self.envs[local])
            self.entrypoint(*self.args[local])  # type: ignore[operator]
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _poll(self) -> RunProcsResult | None:
        codes = self._ended()
        failures = {
            local: ProcessFailure(local, self._pids[local], code, self.error_files[local])
            for local, code in codes.items()
            if code
        }
        if not failures and len(codes) < self.nprocs:
            return None
        self.close()
        return RunProcsResult({} if failures else dict.fromkeys(codes), failures, self.stdouts, self.stderrs)

    def pids(self) -> dict[int, int]:
        return dict(self._pids)

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:
        """None of them runs, and all are reaped; those that `death_sig` has not ended within `timeout` seconds are killed.
        One that waits for a disk or a driver may not die even of that: it is left to the supervisor."""
        for number in (death_sig, signal.SIGKILL):
            for pid in self._running():
                send(pid, number)
            until = time.monotonic() + timeout
            while self._running() and time.monotonic() < until:
                time.sleep(_TICK)
        for local in self._ended():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pids[local], os.WNOHANG)

    def _ended(self) -> dict[int, int]:
        """By local rank, the exit code (or minus the signal) of those that have ended."""
        for local, pid in self._pids.items():
            if local not in self._codes and (code := exit_code(pid)) is not None:
                self._codes[local] = code
        return dict(self._codes)

    def _running(self) -> list[int]:
        ended = self._ended()
        return [pid for local, pid in self._pids.items() if local not in ended]
