"""torchrun as an engine for one attempt: it spawns the ranks and does the rendezvous; what failed goes to a report.

Run as a file: `python launcher.py REPORT torchrun-flags… -- SCRIPT arguments…`. torchrun's own exit status is 1 for every
failure, and the status of each rank is only in the box that it prints; the report has it as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Run by path, so that a module of the user's called `trainer` is not found in place of this package. The script's
# folder, put first by the interpreter, would make `import config` find ours.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.rundir.durable import replace_file


def main(report: Path, flags: list[str], script: str, script_arguments: list[str]) -> int:
    """Exit status 0 when every rank exited with 0; otherwise 1, and `report` lists each failed rank's exit status."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Ranks find their own modules; ours is found by the path of the file that runs.
    sys.path.pop(0)
    try:
        options = run.parse_args([*flags, script])  # type: ignore[no-untyped-call]
        # Set past argparse, which takes a script's own --nproc for an ambiguous option of torchrun.
        options.training_script_args = script_arguments
        run.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        failures = [{"rank": rank, "pid": f.pid, "exit_code": f.exitcode} for rank, f in error.failures.items()]
        replace_file(report, json.dumps({"failures": failures}).encode())
        return 1
    return 0


if __name__ == "__main__":
    split = sys.argv.index("--")
    code = main(Path(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1], sys.argv[split + 2 :])
    # Every rank is gone; tearing down torch's modules would take another 0.1 s.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
