"""`supervise status`: the state of a run."""

from __future__ import annotations

from typing import Any

import click

from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import to_read
from supervisor.core.size import human_seconds
from supervisor.core.words import RunState
from supervisor.reading.plain import plain, plain_lines
from supervisor.reading.table import table
from supervisor.run.status import status
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode


@click.command()
@run_argument
@json_flag
@click.option("--exit-code", is_flag=True, help="Exit with the run's own code; 101 while it runs.")
def command(run: str | None, as_json: bool, exit_code: bool) -> int:
    """Show the state of RUN (an id, a unique prefix, a path; the newest if omitted)."""
    now = status(to_read(run))
    click.echo(encode(now) if as_json else _text(now), nl=as_json)
    if not exit_code:
        return 0
    if now["exit_code"] is not None:
        return int(now["exit_code"])
    return ExitCode.FAILED if now["state"] == RunState.LOST else ExitCode.RUNNING


def _text(now: dict[str, Any]) -> str:
    budget, checkpoint, failure = now["budget"], now["checkpoint"], now["last_failure"]
    step = now["step"] if now["step"] is not None else "not known"
    attempt = "none yet" if now["attempt"] is None else now["attempt"]
    lines = [f"{now['run']}  {now['state'].upper()}  attempt {attempt}  step {step}"]
    if now["reason"]:
        lines.append(f"  reason      {now['reason']}")
    if checkpoint:
        where = f"step {checkpoint['step']}" if checkpoint["step"] is not None else "a step that is not known"
        lines.append(f"  checkpoint  {where}, {human_seconds(checkpoint['age_s'])} ago, {checkpoint['path']}")
    window = human_seconds(budget["window_s"])
    lines.append(
        f"  budget      {budget['used']} of {budget['max_restarts']} restarts used in {window}, "
        f"{budget['no_progress']} of {budget['no_progress_limit']} attempts without a new checkpoint"
    )
    if failure:
        lines.append(f"  last fault  attempt {failure['attempt']}: {failure['reason']}")
    if now["started_over"]:
        lines.append(f"  not loaded  {plain(str(now['started_over']['text']))}")
    if now["standby"]:
        lines.append(f"  standby     {_standby(now['standby'])}")
    lines += [f"  straggler   {plain(slow['text'])}" for slow in now["stragglers"]]
    lines += [f"  pause       {_pause(pause)}" for pause in now["pauses"]]
    lines.append(f"  folder      {now['run_dir']}")
    if now["state"] == RunState.LOST:
        lines.append(f"  its supervisor is gone; go on with: supervise resume {now['run']}")
    text = plain_lines("\n".join(lines)) + "\n"
    if now["workers"]:
        fields = ("rank", "pid", "step", "phase")
        heads = (*fields, "beat age")
        rows = [[*(worker[field] for field in fields), _age(worker["beat_age_s"])] for worker in now["workers"]]
        text += table(heads, rows)
    return text


def _age(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.1f} s"


def _pause(pause: dict[str, Any]) -> str:
    seconds, limit = pause["for_s"], pause["limit_s"]
    text = f"{pause['text']}; for {human_seconds(seconds)} so far" if seconds is not None else str(pause["text"])
    return plain(text + (f" (limit {human_seconds(limit)} in the same place)" if limit is not None else ""))


def _standby(now: dict[str, Any]) -> str:
    """The waiting group, its cost, and the reason why there is no better one."""
    if now["kind"] == "none":
        cold = f"; a restart imports again: attempt 0 took {now['cold_s']} s to its first step" if now["cold_s"] else ""
        return plain(f"none: {now['why']}{cold}")
    text = f"waits ({now['kind']}), {now['pss_bytes'] / 1e6:.0f} MB"
    if now["why"]:
        text += f"; not forked: {now['why']}"
    if now["left_out"]:
        which = ", ".join(f"{name} ({why})" for name, why in sorted(now["left_out"].items()))
        text += f"; imported again at each restart, {now['left_out_s']} s: {which}"
    return plain(text)
