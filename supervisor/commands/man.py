"""`supervise man`: the manual page, made from the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version

import click

from supervisor.commands.help import sectioned
from trainer.rundir.codes import ExitCode

_EXITS = {
    ExitCode.FINISHED: "finished",
    ExitCode.FAILED: "internal error",
    ExitCode.USAGE: "usage, configuration or preflight; nothing was started",
    ExitCode.DAMAGED: "ckpt verify: a checkpoint is bad",
    ExitCode.PREEMPTED: "preempted after a checkpoint, safe to launch again",
    ExitCode.BUDGET: "the restarts are used up",
    ExitCode.RUNNING: "status --exit-code: the run is not over",
    ExitCode.NO_SUCH_RUN: "no such run",
    ExitCode.STOPPED: "stopped by the user",
    ExitCode.POINTLESS: "a restart is not worth it",
    ExitCode.NO_PROGRESS: "attempts in a row left no new checkpoint",
    ExitCode.STUCK: "a process could not be killed",
    ExitCode.CHAOS: "chaos: a verdict failed",
    ExitCode.HELD: "another supervisor holds this run",
    ExitCode.INTERRUPTED: "interrupted, at a command that does not wait for a run",
}


@click.command(epilog="\b\nTo keep it:\n  supervise man > ~/.local/share/man/man1/supervise.1")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Print the manual page, for man(1): every command, every option, the exit codes."""
    click.echo("\n".join(page(ctx.find_root().command)))


def page(root: click.Command) -> Iterator[str]:
    """The lines of the page, in the language of man(7)."""
    yield f'.TH SUPERVISE 1 "" "supervise {version("supervise")}" "User Commands"'
    yield from (".SH NAME", r"supervise \- launch PyTorch training, go home, find it finished")
    ctx = click.Context(root, info_name="supervise")
    yield from (".SH SYNOPSIS", rf".B supervise\fR {_escaped(' '.join(root.collect_usage_pieces(ctx)))}")
    yield ".SH DESCRIPTION"
    yield from _body(root, ctx)
    yield ".SH COMMANDS"
    yield from _commands(root, ctx)
    yield ".SH EXIT STATUS"
    for code, meaning in _EXITS.items():
        yield from (".TP", rf"\fB{int(code)}\fR", meaning)
    yield ".SH FILES"
    yield from (".TP", r"\fBsupervise.toml\fR", "Options of launch as keys, in the current folder.")
    yield from (".TP", r"\fBruns/\fR", "A folder for each run.")


def _commands(group: click.Command, above: click.Context) -> Iterator[str]:
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(above):
        found = group.get_command(above, name)
        if found is None or found.hidden:
            continue
        ctx = click.Context(found, info_name=name, parent=above)
        usage = " ".join([ctx.command_path, *found.collect_usage_pieces(ctx)])
        yield from (f".SS {_escaped(usage)}", *_body(found, ctx))
        yield from _commands(found, ctx)


def _body(command: click.Command, ctx: click.Context) -> Iterator[str]:
    yield from _text(command.help or "")
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    records = {str(option.name): record for option in options if (record := option.get_help_record(ctx)) is not None}
    sections = sectioned(str(command.name), records, "Options")
    for title, rows in sections.items():
        if len(sections) > 1:
            yield from (".PP", rf"\fI{_escaped(title)}\fR")
        for flags, text in rows.values():
            yield from (".TP", rf"\fB{_escaped(flags)}\fR", _escaped(" ".join(text.split())))
    yield from _text(command.epilog or "")


def _text(text: str) -> Iterator[str]:
    """Paragraphs. Those after a `\\b` keep their lines, as in click's help."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        if lines and lines[0].strip() == "\b":
            yield from (".PP", ".nf", *map(_escaped, lines[1:]), ".fi")
        elif lines:
            yield from (".PP", *map(_escaped, map(str.strip, lines)))


def _escaped(text: str) -> str:
    """`text` as it is: no request of roff, no hyphen in place of a dash, any character."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    text = "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in text)
    return rf"\&{text}" if text.startswith((".", "'")) else text
