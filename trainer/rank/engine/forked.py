"""The ranks of one group as forks of this process. The end of a rank is the end of its process.

It replaces torch's MultiprocessContext, whose ranks report their 0 by a queue and then wait for all others. A rank that
leaves by os._exit, becomes another program, or closes its descriptors never reports. And a queue needs semaphores,
which need /dev/shm.
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
from . import rendezvous

_TICK = 0.02


class ForkedRanks(PContext):
    """One fork for each local rank. None is reaped before all have ended, so others can still see each exit status."""

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
        """As torch calls it. Its other arguments concern queues, redirections and NUMA, which are not used here."""
        super().__init__(name, entrypoint, args, envs, logs_specs, log_line_prefixes)
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}

    def _start(self) -> None:
        # Text that is in a buffer now would be written by every rank.
        sys.stdout.flush()
        sys.stderr.flush()
        for local in range(self.nprocs):
            pid = os.fork()
            if pid == 0:
                self._live(local)
            self._pids[local] = pid
        rendezvous.forked(rank=False)

    def _live(self, local: int) -> NoReturn:
        code = 1
        try:
            rendezvous.forked(rank=True)
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
        """No rank runs, and all are reaped. A rank that `death_sig` has not ended within `timeout` seconds is killed. A
        rank that waits for a disk or a driver may survive even that; the supervisor deals with it."""
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
        """For each local rank that has ended: its exit code, or minus the signal."""
        for local, pid in self._pids.items():
            if local not in self._codes and (code := exit_code(pid)) is not None:
                self._codes[local] = code
        return dict(self._codes)

    def _running(self) -> list[int]:
        ended = self._ended()
        return [pid for local, pid in self._pids.items() if local not in ended]
