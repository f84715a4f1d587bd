"""The names of the environment variables that the supervisor sets for every rank."""

from __future__ import annotations

import re

MARK = "SUPERVISE_MARK"
"""Carried by every process of a run, whoever its parent is now: <mark of the run>.<attempt>."""
HIDDEN_ARGUMENTS = "SUPERVISE_HIDDEN_ARGUMENTS"
"""The script's arguments that are not written into a release, being secrets: a JSON object, by index. Taken out of a rank's
environment before the script runs."""
RUN_ID = "SUPERVISE_RUN_ID"
RUN_DIR = "SUPERVISE_RUN_DIR"
ATTEMPT = "SUPERVISE_ATTEMPT"
SUPERVISOR_PID = "SUPERVISE_SUPERVISOR_PID"
GRACE = "SUPERVISE_GRACE"
"""Seconds that ranks which were asked to stop have for it."""
CHILDREN = "SUPERVISE_CHILDREN"
"""RANKS: the script starts its ranks itself (--spawns); PERHAPS: it may. Absent where a process that it starts is none."""
RANKS, PERHAPS = "ranks", "perhaps"
LAUNCHERS = re.compile(
    r"TORCHELASTIC_.*|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_RANK|ROLE_NAME|ROLE_WORLD_SIZE|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)
"""What torchrun sets for a rank, and a program does not have that is started by its user."""
PLAIN_SAVES = "SUPERVISE_PLAIN_SAVES"
"""Not empty: the program's own saves are written as it asks, and not beside."""
RESUME = "SUPERVISE_RESUME"
"""auto, never or must: whether this attempt restores a checkpoint."""
RESUME_STEP = "SUPERVISE_RESUME_STEP"
"""The newest step that it may go on from, as of the attempt's launch, or -1: of a checkpoint of ours, or, where the run has
none, the true step of the script's own newest whole save."""
RESUME_FROM = "SUPERVISE_RESUME_FROM"
"""The path of that checkpoint, or of that save: the file that was written last. Empty if there is none."""
ROLLBACK = "SUPERVISE_ROLLBACK"
"""An order to go back (trainer.rundir.records.rollback), or empty."""
FLUSH_SECONDS = "SUPERVISE_FLUSH_SECONDS"
"""How long the run's newest flush took, or empty."""
MTBF_SECONDS = "SUPERVISE_MTBF_SECONDS"
"""The mean time between the run's newest failures, or empty: none yet."""
STORE = "SUPERVISE_STORE"
"""Where the ranks of a group meet in place of the launcher's port, as PORT:FILE; set by the launcher."""
GROUP = "SUPERVISE_GROUP"
"""The folder of its group."""
PRELOAD = "SUPERVISE_PRELOAD"
"""Of a rank that is to wait long: the file that lists what it imports meanwhile."""
