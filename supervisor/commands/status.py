"""`supervise status`: the state of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import click

from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import to_read
from supervisor.core.size import human_bytes, human_seconds
from supervisor.core.telling import advice, figures
from supervisor.core.words import RunState
from supervisor.group import kept
from supervisor.reading.local_time import local
from supervisor.reading.plain import plain
from supervisor.reading.table import folded, table
from supervisor.run import origin
from supervisor.run.runs import Known
from supervisor.run.spec import restore
from supervisor.run.status import status
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode

_HEAD = 12
"""Columns of a line's name."""
_GOES_ON = (RunState.STARTING, RunState.RUNNING, RunState.RECOVERING, RunState.BACKOFF)


@click.command()
@run_argument
@json_flag
@click.option("--exit-code", is_flag=True, help="Exit with the run's own code; 101 while it runs.")
def command(run: str | None, as_json: bool, exit_code: bool) -> int:
    """Show the state of RUN (an id, a unique prefix, a path; the newest if omitted)."""
    known = to_read(run)
    now = {**status(known), "kept": _kept(known)}
    click.echo(encode(now) if as_json else _text(now, known), nl=as_json)
    if not exit_code:
        return 0
    if now["exit_code"] is not None:
        return int(now["exit_code"])
    return ExitCode.FAILED if now["state"] == RunState.LOST else ExitCode.RUNNING


def _kept(known: Known) -> dict[str, Any] | None:
    """The fork server that stays for the next run of this script (--keep-warm)."""
    spec = restore(known.spec)
    found = kept.known(spec) if spec.keep_warm else None
    return None if found is None else {"pid": found.pid, "left_s": round(found.left_s, 1)}


def _text(now: dict[str, Any], known: Known) -> str:
    where = "no attempt yet" if now["attempt"] is None else f"attempt {now['attempt']}, {_step(now)}"
    text = plain(f"{known.label}  {now['state'].upper()}  {where}") + "\n"
    text += "".join(_line(head, said) for head, said in _lines(now, known) if said)
    if now["workers"]:
        fields = ("rank", "pid", "step", "phase")
        heads = (*fields, "beat age")
        rows = [[*(worker[field] for field in fields), _age(worker["beat_age_s"])] for worker in now["workers"]]
        text += table(heads, rows)
    return text


def _line(head: str, text: str) -> str:
    return folded(f"  {head:<{_HEAD}}{plain(text)}", _HEAD + 2) + "\n"


def _lines(now: dict[str, Any], known: Known) -> list[tuple[str, str]]:
    """(name, text) of each line. Lines without a text have nothing to say."""
    failure = now["last_failure"]
    return [
        ("reason", now["reason"]),
        ("command", command_of(now)),
        ("code", origin.told(now)),
        ("started", times(now)),
        ("progress", progress(now)),
        ("now", now["doing"] or ""),
        ("checkpoint", _checkpoint(now)),
        ("budget", advice.budget(now["budget"])),
        ("last fault", f"attempt {failure['attempt']}: {failure['reason']}" if failure else ""),
        ("not loaded", str(now["started_over"]["text"]) if now["started_over"] else ""),
        ("standby", _standby(now["standby"]) if now["standby"] else ""),
        ("", figures.standbys(now["standby_cost"])),
        ("kept warm", _stays(now["kept"]) if now["kept"] else ""),
        *(("node", _node(node, len(now["nodes"]))) for node in now["nodes"]),
        *(("straggler", text) for text in stragglers(now)),
        *(("pause", _pause(pause)) for pause in now["pauses"]),
        ("log", os.path.relpath(now["log"]) if now["log"] else ""),
        ("folder", now["run_dir"]),
        *(("no saves" if i == 0 else "", said) for i, said in enumerate(saves_nothing(now))),
        ("next", what_next(now, known.name, restore(known.spec).several)),
    ]


def saves_nothing(now: dict[str, Any]) -> tuple[str, ...]:
    return advice.NOTHING_SAVED if now["saves_nothing"] else ()


def command_of(now: Mapping[str, Any]) -> str:
    return f"{now['nproc']} x {shlex.join([*(['-m'] if now['module'] else []), *now['command']])}"


def times(now: dict[str, Any]) -> str:
    """When it began, for how long it has gone on, and when it ended."""
    if not now["started"]:
        return ""
    ran = human_seconds(now["wall_s"] - now["stopped_s"])
    stopped = f", and was stopped for {human_seconds(now['stopped_s'])}" if now["stopped_s"] >= 1.0 else ""
    over = f", ended {local(now['ended'])}" if now["ended"] else ""
    return f"{local(now['started'])}{over}; it {'ran' if over else 'has run'} for {ran}{stopped}"


def progress(now: dict[str, Any]) -> str:
    """How far, how fast, how long yet, the loss and the learning rate, as far as they are known."""
    step = now["step"] if now["attempt_step"] is None else now["attempt_step"]
    total, parts = now["total"], []
    if total is not None and step is not None:
        parts.append(f"step {step} of {total} ({figures.share(step, total)})")
    if now["step_ms"] is not None:
        parts.append(figures.per_step(now["step_ms"]))
    if now["eta_s"] is not None:
        parts.append(f"{human_seconds(now['eta_s'])} to go")
    if now["loss"] is not None:
        parts.append(f"loss {figures.loss(now['loss'])}")
    if now["lr"] is not None:
        parts.append(f"learning rate {figures.rate(now['lr'])}")
    return ", ".join(parts)


def _step(now: dict[str, Any]) -> str:
    step, attempt_step = now["step"], now["attempt_step"]
    if step is None:
        return "no step yet" if attempt_step is None else "step not known"
    if attempt_step is not None and attempt_step < step:
        return f"step {attempt_step} (again: an earlier attempt had reached {step})"
    return f"step {step}"


def _checkpoint(now: dict[str, Any]) -> str:
    checkpoint = now["checkpoint"]
    if not checkpoint:
        return ""
    where = f"step {checkpoint['step']}" if checkpoint["step"] is not None else "a step that is not known"
    return f"{where}, {human_seconds(checkpoint['age_s'])} ago, {checkpoint['path']}"


def what_next(now: Mapping[str, Any], name: str, several: bool) -> str:
    """What a person would do now."""
    look, again = f"supervise report {name}", advice.go_on(name, several)
    match now["state"]:
        case RunState.BACKOFF if now["next_try_s"] is not None:
            return (
                f"the next attempt starts in {human_seconds(now['next_try_s'])}; supervise resume {name} starts it now"
            )
        case state if state in _GOES_ON:
            return f"supervise tail {name} · supervise stop {name}"
        case RunState.STOPPING:
            return f"supervise tail {name} · supervise stop --now {name}"
        case RunState.LOST:
            return f"its supervisor is gone; go on with: {again}"
        case RunState.FINISHED:
            return look
        case RunState.STUCK:
            return f"{look} · when these processes are gone: {again}"
        case _:
            return f"{look} · to go on: {again}"


def _age(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.1f} s"


def stragglers(now: dict[str, Any]) -> Iterator[str]:
    """One line for each slow rank, or for a node with several ranks that are all slow: then it is the node's doing."""
    slow = {row["rank"]: row for row in now["stragglers"]}
    for node in now["nodes"]:
        if len(node["ranks"]) > 1 and slow.keys() >= set(node["ranks"]):
            yield f"node {node['node']} on {node['host']}: all its ranks; {slow[node['ranks'][0]]['text']}"
            slow = {rank: row for rank, row in slow.items() if rank not in node["ranks"]}
    for row in slow.values():
        yield f"{row['text']}, on node {row['node']} ({row['host']})" if "node" in row else row["text"]


def _node(node: dict[str, Any], count: int) -> str:
    first, last = node["ranks"][0], node["ranks"][-1]
    ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
    # Sharded state is then whole on no node.
    saves = "save what they hold" if count <= 2 else "save what they hold (of sharded state: keep it in memory)"
    leads = f"; it leads: if it is lost, all nodes {saves} and end with 75" if node["node"] == 0 else ""
    return f"{node['node']} on {node['host']}: {ranks}{leads}"


def _pause(pause: dict[str, Any]) -> str:
    seconds, limit = pause["for_s"], pause["limit_s"]
    text = f"{pause['text']}; for {human_seconds(seconds)} so far" if seconds is not None else str(pause["text"])
    return text + (f" (limit {human_seconds(limit)} in the same place)" if limit is not None else "")


def _stays(now: dict[str, Any]) -> str:
    return f"for {human_seconds(now['left_s'])} more, for the next launch of this script (pid {now['pid']})"


def _standby(now: dict[str, Any]) -> str:
    """The waiting group, its cost, and the reason why there is no better one."""
    if now["kind"] == "none":
        cold = f"; a restart imports again: attempt 0 took {now['cold_s']} s to its first step" if now["cold_s"] else ""
        return f"none: {now['why']}{cold}"
    text = f"waits ({now['kind']}); it costs {human_bytes(now['pss_bytes'])} of memory"
    if now["why"]:
        text += f"; not forked: {now['why']}"
    if now["at"] == "restore":
        text += ", in restore()"
    elif now["why_start"]:
        text += f", at the first line: {now['why_start']}"
    if now["left_out"]:
        which = ", ".join(f"{name} ({why})" for name, why in sorted(now["left_out"].items()))
        text += f"; imported again at each restart, {now['left_out_s']} s: {which}"
    return text
