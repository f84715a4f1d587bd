"""What was probably meant by a word that is no command or option here, and where a wrong value stands. A hint is right,
or there is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click
from click.core import ParameterSource

CONFIG = "config"
"""The key of click's `meta` with the path of the supervise.toml that was read."""
COMMANDS = {
    "train": "launch",
    "start": "launch",
    "continue": "resume",
    "retry": "resume",
    "show": "status",
    "describe": "status",
    "kill": "stop --now",
    "cancel": "stop",
    "down": "stop",
    "delete": "rm",
    "clean": "gc",
    "dump": "stacks",
    "profile": "stacks --top 5s",
    "manual": "man",
}
"""What other tools call a command, and ours that does it."""
OPTIONS = {
    "--gpus": "--nproc",
    "--num-gpus": "--nproc",
    "--num-processes": "--nproc",
    "--nprocs": "--nproc",
    "--world-size": "--nproc",
    "--background": "--detach",
    "--daemon": "--detach",
    "--retries": "--max-restarts",
    "--restart": "--max-restarts",
    "--restarts": "--max-restarts",
    "--timeout": "--hang-timeout",
    "--output": "--run-dir",
    "--output-dir": "--run-dir",
    "--out": "--run-dir",
}
"""What other launchers call an option of launch, and ours."""
_BUILT_IN = (
    "steps data batch-size block-size n-layer n-head n-embd lr amp seed checkpoint-every snapshot-every keep log-every "
    "device"
)
_CLOSE = 0.75


def command_hint(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'launch'?`, or nothing."""
    return f"; did you mean '{COMMANDS[word]}'?" if word in COMMANDS else _close(word, sorted(known))


def option_hint(error: click.NoSuchOption) -> str:
    """`; did you mean '--nproc'?`, or nothing. For an option of the built-in trainer: where it belongs."""
    ctx, word = error.ctx, error.option_name.replace("_", "-")
    if ctx is None:
        return ""
    options = [option for option in ctx.command.params if isinstance(option, click.Option) and not option.hidden]
    names = [name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
    if ctx.command.name == "launch" and word.removeprefix("--") in _BUILT_IN.split():
        return f"; a script's own options come after the script, and the built-in trainer's after --: … -- {word} …"
    if ctx.command.name == "launch" and OPTIONS.get(word) in names:
        return f"; did you mean '{OPTIONS[word]}'?"
    return _close(word, names)


def _close(word: str, names: list[str]) -> str:
    found = difflib.get_close_matches(word, names, 1, _CLOSE)
    return f"; did you mean '{found[0]}'?" if found else ""


def file_of(error: click.BadParameter) -> str | None:
    """The file of settings that the value stands in. None if it was typed, or is the environment's."""
    if error.ctx is None or error.param is None or error.param.name is None:
        return None
    from_file = error.ctx.get_parameter_source(error.param.name) is ParameterSource.DEFAULT_MAP
    return error.ctx.meta.get(CONFIG) if from_file else None
