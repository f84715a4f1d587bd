"""`supervise policy`: the action for each cause, as it is in force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.launch import as_configured
from supervisor.core.rules import CHOICES, DEFAULTS, FIXED, Rule, table
from supervisor.reading import table as tables
from supervisor.run import spec as specs
from supervisor.run.runs import SCHEMA, find
from trainer.rundir.files.codec import encode


@click.command()
@run_argument
@click.option("--config", type=click.Path(path_type=Path), envvar="SUPERVISE_CONFIG", help="As launch would take it.")
@json_flag
@click.pass_context
def command(ctx: click.Context, run: str | None, config: Path | None, as_json: bool) -> None:
    """Show the rules, in their order. The first rule that matches decides.

    Shows the rules of RUN. Without RUN: those of a launch here, with supervise.toml and the environment.
    """
    policy = specs.restore(find(run).spec).policy if run is not None else as_configured(ctx, config)
    rules = table(policy)
    if as_json:
        limits = {name: getattr(policy, name) for name in ("max_restarts", "window", "no_progress_limit", "backoff")}
        body = {"schema": SCHEMA, "rules": [_described(rule) for rule in rules], "limits": limits, "fixed": FIXED}
        click.echo(encode(body))
        return
    rows = [(r.when, r.do.value, "" if r.exit_code is None else r.exit_code, r.why) for r in rules]
    click.echo(tables.table(("when", "do", "exit code", "why"), rows), nl=False)
    click.echo(
        f"\nTo change one, in supervise.toml below [policy], or as --policy CAUSE=ACTION: {_example()}", err=True
    )


def _described(rule: Rule) -> dict[str, Any]:
    """One rule as JSON values. `cause` is the rule's name in [policy], or null if [policy] cannot change it."""
    return {
        "when": rule.when,
        "do": rule.do.value,
        "exit_code": rule.exit_code,
        "why": rule.why,
        "cause": rule.cause.value if rule.cause else None,
        "overridden": rule.cause is not None and rule.do is not DEFAULTS[rule.cause][0],
    }


def _example() -> str:
    actions, fixed = ", ".join(do.value for do in CHOICES), ", ".join(FIXED)
    return f'host_oom = "stop"\nActions: {actions}. Not to be changed: {fixed}, and the rules about evidence.'
