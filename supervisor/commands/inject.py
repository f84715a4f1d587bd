"""`supervise inject`: puts a fault into a live run."""

from __future__ import annotations

import textwrap

import click

from supervisor.commands import nodes
from supervisor.commands.completion import running_runs
from supervisor.commands.meant import to_act_on
from supervisor.commands.options import FaultSpec
from supervisor.commands.sound import no_rank
from supervisor.errors import Refusal
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.spec import restore
from trainer.rundir.records import faults
from trainer.rundir.records.fault_kinds import KINDS

_KINDS = textwrap.fill(" ".join(KINDS), 72, subsequent_indent=" " * 7, break_on_hyphens=False)


@click.command(epilog=f"\b\nKinds: {_KINDS};\n       exit takes code=N, slow takes seconds=2s")
@click.argument("words", metavar="[RUN] SPEC", nargs=-1, required=True, shell_complete=running_runs)
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Make the fault SPEC happen in RUN (default: the only run that runs), once.

    \b
    kill:rank=1                    at once (rank 0 if omitted, all for every rank)
    stop:rank=0@after=3s           after a while
    exc:rank=1@step=40             once 40 steps are done
    kill@phase=save                on entering startup restore first_step train save eval teardown
    kill:rank=all@standby=warming  while the next worker group is in the making
    kill@phase=restore,step=40     also with phase or standby: not before step 40
    corrupt:checkpoint=latest      or checkpoint=STEP; torn takes the same
    """
    if len(words) > 2:
        raise click.UsageError(f"a RUN and a SPEC are wanted, not {len(words)} words", ctx)
    spec = FaultSpec().convert(words[-1], None, ctx)
    known = to_act_on(words[0] if len(words) == 2 else None)
    if not is_held(known.run):
        raise Refusal(f"{known.label} is not running; faults go into live runs, or into launch --inject")
    vet(known.run)
    fault, wanted = faults.parse_fault(spec), restore(known.spec)
    world = wanted.nproc * nodes.most(wanted.nnodes)
    # A script that is started once may have started ranks itself.
    if world > 1 and (fault.rank or 0) >= world:
        raise Refusal(no_rank(fault, world))
    number = faults.arm(known.run.faults, fault)
    click.echo(f"armed fault {number}: {spec}; follow with: supervise events -f {known.name}", err=True)
