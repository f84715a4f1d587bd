"""`supervise completion`: what a shell needs to complete commands, options and the names of runs."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from supervisor.errors import Refusal

_HOW = {
    "bash": "echo 'eval \"$(supervise completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(supervise completion zsh)\"' >> ~/.zshrc",
    "fish": "supervise completion fish > ~/.config/fish/completions/supervise.fish",
}
VARIABLE = "_SUPERVISE_COMPLETE"
_MOST = 200
"""The most runs that are offered."""


@click.command(epilog="\b\nOnce, for all later shells:\n" + "\n".join(f"  {line}" for line in _HOW.values()))
@click.argument("shell", type=click.Choice([*_HOW]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion of SHELL: of commands, options, values and the names of runs."""
    found = get_completion_class(shell)
    assert found is not None
    source = found(ctx.find_root().command, {}, "supervise", VARIABLE).source()
    # click's own function for fish cuts what is said about a command at its first comma.
    click.echo(source.replace('string split ","', 'string split -m 1 ","'))


def known_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The runs here, newest first, with their states; and folders, for a run elsewhere."""
    return _offered(incomplete, running=False)


def running_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The runs here that a supervisor holds."""
    return _offered(incomplete, running=True)


def a_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever the shell finds: a script, or one of its arguments."""
    return [CompletionItem(incomplete, type="file")]


def _offered(incomplete: str, running: bool) -> list[CompletionItem]:
    # These load what help must not wait for.
    from supervisor.run.folder.lock import is_held
    from supervisor.run.runs import all_runs

    try:
        runs = [known for known in all_runs() if known.run.path.name.startswith(incomplete)][:_MOST]
    except (OSError, Refusal):
        runs = []
    living = {known.run.path.name for known in runs if is_held(known.run)}
    names = [known.run.path.name for known in runs]
    items = [
        CompletionItem(name, help="runs" if name in living else "is over")
        for name in names
        if name in living or not running
    ]
    return items or [CompletionItem(incomplete, type="dir")]
