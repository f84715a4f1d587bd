"""The systemd unit of a run: after a reboot its user's manager goes on with it. See systemd.service(5), systemd.exec(5)
and loginctl(1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

KEPT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "OMP_NUM_THREADS",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
)
"""What a run needs of the environment that installs it. A manager's own environment is nearly empty. No secret is among
these."""


def name(run: str) -> str:
    """The unit's file name. Runs with different ids have different names."""
    return f"supervise-{re.sub(r'[^A-Za-z0-9.-]', lambda found: f'_{ord(found[0]):x}_', run)}.service"


def unit(run: str, folder: Path, cwd: str, program: list[str], grace: float, environ: Mapping[str, str]) -> str:
    """The text of the unit. `program` is the command line of supervise, without its arguments."""
    # systemd takes no quote or backslash in the name of a program, but any argument; and only in arguments of a
    # command $ begins a variable.
    words = [_word(word).replace("$", "$$") for word in (*program, "service", "start", str(folder))]
    command = " ".join(["/usr/bin/env", *words])
    kept = [f"Environment={_word(f'{key}={environ[key]}')}" for key in KEPT if environ.get(key)]
    return "\n".join(
        [
            "[Unit]",
            f"Description=supervise: {_text(run)}",
            # A run that is over needs nobody, after any number of reboots.
            f"ConditionPathExists={_text(str(folder / 'run.json'))}",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"WorkingDirectory={_text(cwd)}",
            *kept,
            f"ExecStart={command}",
            # 0, 75 (preempted, also by a shutdown) and 103 (stopped) are good ends. A run that failed is not tried
            # again: its exit code says that it is pointless. A supervisor that was killed is followed by another, which
            # goes on with the ranks; so these must live on until then.
            "SuccessExitStatus=75 103",
            "Restart=on-abnormal",
            "RestartSec=1",
            "KillMode=process",
            f"TimeoutStopSec={grace + 30:.0f}",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _text(text: str) -> str:
    """`text` as a value. % begins a specifier."""
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """`text` as one word of a command line or of Environment=, whatever it holds."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{_text(quoted)}"'
