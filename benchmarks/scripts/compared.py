"""The built-in GPT, which writes down what each comparison of replicas takes of its rank.

compared.py FOLDER [flags of -m trainer]: lines in FOLDER/rankN, one a comparison and one at the end: seconds by the
wall, seconds of the processor, seconds since the process began to train.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from _supervise.__main__ import main
from _supervise.checkpoint.source import Source

out = Path(sys.argv[1]) / f"rank{os.environ['RANK']}"
began = time.perf_counter()
compare = Source.compare


def write(wall: float, cpu: float) -> None:
    with out.open("a") as file:
        file.write(json.dumps([wall, cpu, time.perf_counter() - began]) + "\n")


def timed(self: Source, step: int) -> Any:
    wall, cpu, before = time.perf_counter(), time.process_time(), self.replicas.equal_at
    found = compare(self, step)
    if self.replicas.equal_at != before:
        write(time.perf_counter() - wall, time.process_time() - cpu)
    return found


Source.compare = timed  # type: ignore[method-assign]
sys.argv[1:] = sys.argv[2:]
code = main()
write(0.0, 0.0)
sys.exit(code)
