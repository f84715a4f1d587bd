"""`python -m trainer`: trains the built-in model, alone, under torchrun, or under supervise.

Exit codes: 0 finished, 1 failed (a loss that is not finite, too), 2 usage, 75 stopped after a checkpoint, 78 no restart
can help (no usable checkpoint, or one of another model).
"""

from __future__ import annotations

import sys

from .checkpoint.errors import CheckpointError
from .errors import NotFinite, UsageError
from .gpt.config import parse, place
from .rank.progress import progress
from .rundir.codes import ExitCode


def main() -> int:
    try:
        config = parse(sys.argv[1:])
        here = place()
        from .gpt.loop import train

        train(config, here)
    except (UsageError, CheckpointError) as error:
        # All ranks have the same error; one of them prints it.
        if place().rank == 0:
            print(f"trainer: {error}", file=sys.stderr, flush=True)
        progress().failed(error, error.exit_code)
        return error.exit_code
    except NotFinite as error:
        if place().rank == 0:
            print(f"trainer: {error}; nothing of that step was saved", file=sys.stderr, flush=True)
        progress().failed(error, ExitCode.FAILED)
        return ExitCode.FAILED
    except SystemExit as end:
        if end.code != ExitCode.PREEMPTED:
            raise
        _leave_group()
        return ExitCode.PREEMPTED
    _leave_group()
    return ExitCode.FINISHED


def _leave_group() -> None:
    # Only if all ranks have agreed to end. After an error on one rank, the others may never come to this collective.
    # Then the process just ends, and the launcher sees the first failure at once.
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
