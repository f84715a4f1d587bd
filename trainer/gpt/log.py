"""Lines on stderr for people, while a run trains."""

from __future__ import annotations

import sys
import time

from .config import TrainConfig


class Log:
    """The lines of one rank; none if it is `quiet`."""

    def __init__(self, config: TrainConfig, start: int, quiet: bool) -> None:
        self._config = config
        self._quiet = quiet
        self._since, self._then = start, time.monotonic()

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self, done: int, loss: float, lr: float) -> None:
        """Prints a line every `log_every` steps and after the last step: the loss, and the speed since the previous
        line."""
        if self._quiet or (done % self._config.log_every and done != self._config.steps):
            return
        now = time.monotonic()
        per_step = (now - self._then) / max(1, done - self._since)
        self._since, self._then = done, now
        rate = self._config.batch_size * self._config.block_size / per_step
        self.say(f"step {done}  loss {loss:.4f}  lr {lr:.2e}  {per_step * 1000:.0f} ms/step  {rate:,.0f} tokens/s")
