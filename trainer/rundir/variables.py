"""The names of the environment variables that the supervisor sets for every rank."""

from __future__ import annotations

import re

MARK = "SUPERVISE_MARK"
"""Every process of a run has it, with any parent: <mark of the run>.<attempt>."""
HIDDEN_ARGUMENTS = "SUPERVISE_HIDDEN_ARGUMENTS"
"""The script's arguments that are secrets and must not be written into a release: a JSON object, by index. It is
removed from a rank's environment before the script runs."""
RUN_ID = "SUPERVISE_RUN_ID"
RUN_DIR = "SUPERVISE_RUN_DIR"
PLACE = "SUPERVISE_PLACE"
"""The folder of this node alone, of a run over several nodes (trainer.rundir.layout)."""
ATTEMPT = "SUPERVISE_ATTEMPT"
SUPERVISOR_PID = "SUPERVISE_SUPERVISOR_PID"
GRACE = "SUPERVISE_GRACE"
"""Seconds that ranks have to stop after a request."""
CHILDREN = "SUPERVISE_CHILDREN"
"""RANKS: the script starts its ranks itself (--spawns). PERHAPS: it may. Absent: the processes that it starts are not
ranks."""
RANKS, PERHAPS = "ranks", "perhaps"
LAUNCHERS = re.compile(
    r"TORCHELASTIC_.*|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_RANK|ROLE_NAME|ROLE_WORLD_SIZE|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)
"""The variables that torchrun sets for a rank. A program that its user starts does not have them."""
RESTARTS, MOST_RESTARTS = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"
PLAIN_SAVES = "SUPERVISE_PLAIN_SAVES"
"""Not empty: the program's own saves are written directly to their paths."""
RESUME = "SUPERVISE_RESUME"
"""auto, never or must: whether this attempt restores a checkpoint."""
RESUME_STEP = "SUPERVISE_RESUME_STEP"
"""The newest step from which the attempt may resume, as known at its launch, or -1. It is the step of a checkpoint of
ours. If the run has none, it is the true step of the script's own newest whole save."""
RESUME_FROM = "SUPERVISE_RESUME_FROM"
"""The path of that checkpoint, or of that save (the file that was written last). Empty if there is none."""
ROLLBACK = "SUPERVISE_ROLLBACK"
"""An order to go back (trainer.rundir.records.rollback), or empty."""
FLUSH_SECONDS = "SUPERVISE_FLUSH_SECONDS"
"""Seconds that the run's newest flush took, or empty."""
MTBF_SECONDS = "SUPERVISE_MTBF_SECONDS"
"""The mean time between the run's newest failures, in seconds. Empty before the first failure."""
LEAVING = "SUPERVISE_LEAVING"
"""Processes of the last attempt that ran no code any more at the release, but held memory of a GPU: `PID:START …`, with
the kernel's start time. A copy from a GPU may still land in the shared memory that they wrote to."""
TOLD = "SUPERVISE_TOLD"
"""How the program resumes, for the hooks in its ranks (trainer.rundir.records.told)."""
STORE = "SUPERVISE_STORE"
"""The meeting place of the ranks of a group, in place of the launcher's port: PORT:FILE. The launcher sets it."""
LEASH = "SUPERVISE_LEASH"
"""On several nodes: the socket where a rank gets its connection to the leader (trainer/rank/leash.py)."""
GROUP = "SUPERVISE_GROUP"
"""The folder of its group."""
PRELOAD = "SUPERVISE_PRELOAD"
"""For a rank that will wait long: the file with the list of its imports."""
