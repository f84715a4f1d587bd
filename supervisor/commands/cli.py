"""The command line: the names of the commands, and their modules. A module is imported only when its command is
called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from supervisor.commands.help import sectioned, with_examples
from supervisor.commands.hints import command_hint, file_of, option_hint
from supervisor.commands.standard import let_the_readers_go
from supervisor.errors import InternalError, Refusal
from supervisor.reading.plain import plain
from trainer.rundir.codes import ExitCode

COMMANDS = {
    "launch": "Train a script (or the built-in GPT) and bring it back when it dies or hangs.",
    "resume": "Continue a stopped, failed, preempted or lost run, as it was launched.",
    "ls": "List the runs here.",
    "status": "Show the state of a run.",
    "report": "Show how a run used its time: failures, recoveries, the ledger.",
    "events": "Show what happened in a run, event by event.",
    "tail": "Follow a run's events and all its ranks' logs, over restarts.",
    "watch": "Show a run on the full screen, live.",
    "web": "Serve the pages of the runs here to this machine's browsers, live.",
    "attach": "Follow a live run as if it had been launched here.",
    "stacks": "Show where every rank of a live run stands, or spends its time.",
    "stop": "Stop a run, after a last checkpoint.",
    "inject": "Make a fault happen in a live run.",
    "chaos": "Train under a seeded schedule of faults, and prove that the end is the same.",
    "policy": "Show what is done after each cause of failure.",
    "ckpt": "List, verify, prune or export a run's checkpoints.",
    "doctor": "Check this machine for what would harm a run.",
    "submit": "Submit a run to Slurm.",
    "service": "Let systemd go on with a run after a reboot.",
    "gc": "Find and remove the leftovers of dead runs.",
    "rm": "Remove the folders of runs that are over.",
    "completion": "Print the completion of commands and runs for a shell.",
    "man": "Print the manual page.",
}
ALIASES = {"inject-failure": "inject", "run": "launch", "logs": "tail", "ps": "ls", "top": "watch"}


_ASKED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""Older versions of click print the help themselves."""


class Group(click.Group):
    """Knows its commands by name, and loads one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`help` and `version` are words for the options."""
        if args and args[0] == "help":
            args = [*self._command_in(ctx, args[1:]), "--help"]
        elif args and args[0] == "version":
            args = ["--version"]
        return super().parse_args(ctx, args)

    def _command_in(self, ctx: click.Context, words: list[str]) -> list[str]:
        """The words that name a command, as in `ckpt ls`; what follows is not to be done."""
        group = isinstance(self.get_command(ctx, words[0]), click.Group) if words else False
        return words[: 2 if group else 1]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"supervisor.commands.{name}").command
        return with_examples(command, name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click would import every command. And a script may stand in place of a command.
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return names + options or [CompletionItem(incomplete, type="file")]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would import every command to get its first line.
        rows = {name: (name, text) for name, text in COMMANDS.items()}
        for title, found in sectioned("", rows, "Commands").items():
            with formatter.section(title):
                formatter.write_dl(list(found.values()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in {*COMMANDS, *ALIASES}:
            if args[0].endswith(".py") and Path(args[0]).is_file():
                return super().resolve_command(ctx, ["launch", *args])
            if args[0].endswith(".py"):
                raise Refusal(f"no script {args[0]!r} here, and no command; see: supervise --help")
            raise click.UsageError(f"no command {args[0]!r}{command_hint(args[0], [*COMMANDS, *ALIASES])}")
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="supervise", prog_name="supervise")
def supervise() -> None:
    """Launch PyTorch training, go home, find it finished.

    If the training crashes or hangs, it is restarted from its newest good checkpoint, and you are told why.
    """


with_examples(supervise, "")


def run(arguments: Sequence[str]) -> int:
    """The exit code of the command. A user's mistake is one line on stderr, never a traceback."""
    let_the_readers_go()
    try:
        result = supervise.main(list(arguments), prog_name="supervise", standalone_mode=False)
    except (Refusal, InternalError) as ended:
        return _say(str(ended), ended.exit_code)
    except _ASKED as asked:
        # A command that needs another word after it: its help says which.
        asked.show(sys.stdout)
        return 0
    except click.UsageError as error:
        return _say(_usage(error, arguments), ExitCode.USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), ExitCode.USAGE)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", ExitCode.INTERRUPTED)
    except OSError as error:
        # We can rarely explain an error of the system. But it is never worth a traceback.
        if not error.filename and not _is_here():
            return _say("the current folder has been removed; cd to one that is there", ExitCode.USAGE)
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", ExitCode.USAGE)
    return result if isinstance(result, int) else 0


def _is_here() -> bool:
    try:
        return bool(Path.cwd())
    except OSError:
        return False


def _usage(error: click.UsageError, arguments: Sequence[str]) -> str:
    text = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        # click proposes options that have little in common with what was typed.
        text = f"no option {error.option_name!r}{option_hint(error)}"
    if isinstance(error, click.BadParameter) and (source := file_of(error)):
        key = str(error.param.name if error.param else "").replace("_", "-")
        return f"{source}: {key}: {error.message.rstrip('.')}"
    # click does not say where the value of an option is missing.
    command = next((f" {word}" for word in arguments[:1] if word in COMMANDS), "")
    where = error.ctx.command_path if error.ctx else f"supervise{command}"
    return f"{text}; see: {where} --help"


def _say(text: str, exit_code: int) -> int:
    # It is one line, and no name in it can control the terminal.
    print(f"supervise: {plain(text)}", file=sys.stderr)
    return exit_code
