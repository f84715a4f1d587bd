"""The help pages: options in sections, and an example for each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

SECTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "": {
        "Train": ("launch", "resume", "stop"),
        "Look": ("ls", "status", "watch", "attach", "tail", "events", "report", "web", "stacks"),
        "Checkpoints": ("ckpt",),
        "Try what happens when it fails": ("inject", "chaos", "policy"),
        "This machine": ("doctor", "gc", "rm", "submit", "service", "completion", "man"),
    },
    "launch": {
        "What you want": ("config", "nproc", "name", "run_dir", "module", "spawns", "local_addr"),
        "When it fails": (
            "max_restarts window no_progress_limit backoff grace hang_timeout startup_timeout actions standby park "
            "keep_warm inject"
        ).split(),
        "Checkpoints": ("resume", "resume_args", "adapter", "plain_saves"),
        "Several nodes": ("nnodes", "node_rank", "rdzv_endpoint", "node_wait", "lease", "local_dir"),
        "Output": ("detached", "as_json", "quiet", "log_restarts", "metrics_file", "help"),
    },
}
"""By command ("" is `supervise` itself): the sections of its help, with the commands or the options by name. What is
in none comes last."""

EXAMPLES: Mapping[str, str] = {
    "": """
        supervise launch --nproc 2                      train the built-in GPT
        supervise launch --nproc 2 train.py --lr 1e-4   your script, unchanged
        supervise train.py                              the same with one rank
        supervise launch torchrun --nproc-per-node 2 train.py
        supervise tail                                  follow the newest run
        supervise launch --nproc 2 --inject kill:rank=1@step=40 -- --steps 80""",
    "launch": """
        supervise launch --nproc auto -d train.py   a rank per GPU, detached
        supervise launch --nproc 2 --inject kill:rank=1@step=40 train.py
        supervise launch --run-dir runs/gpt-7f3a    go on with that run
        supervise launch --hang-timeout 10m --policy host_oom=stop train.py
        supervise launch torchrun --standalone --nproc-per-node 2 train.py""",
    "resume": "supervise resume gpt-7f3a -d",
    "stop": "supervise stop gpt-7f3a   after a last checkpoint (--now: without)",
    "ls": "supervise ls --json | jq '.runs[].run'",
    "status": "supervise status gpt-7f3a --json | jq .state",
    "watch": "supervise watch gpt-7f3a",
    "attach": "supervise attach gpt-7f3a",
    "tail": "supervise tail gpt-7f3a --rank 0 --grep loss",
    "events": "supervise events -f --level warning",
    "report": "supervise report gpt-7f3a --html run.html",
    "stacks": """
        supervise stacks gpt-7f3a             where each rank stands now
        supervise stacks gpt-7f3a --top 5s    where they spend their time""",
    "ckpt ls": "supervise ckpt ls gpt-7f3a",
    "ckpt": """
        supervise ckpt ls gpt-7f3a
        supervise ckpt export gpt-7f3a --format torch --output model.pt""",
    "chaos": "supervise chaos --seed 7 --count 20",
    "policy": "supervise policy --json | jq '.rules[0]'",
    "doctor": "supervise doctor train.py",
    "service": "supervise service install gpt-7f3a",
    "web": "supervise web --port 8080",
    "submit": "supervise submit --slurm --time 8:00:00 -- --nproc auto train.py",
    "gc": "supervise gc --yes",
    "rm": "supervise rm gpt-7f3a gpt-11c0",
    "man": "supervise man | man -l -",
}


class Paged(click.Command):
    """A command whose help has sections and examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            str(param.name): record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        for title, rows in sectioned(str(self.name), records, "Options").items():
            with formatter.section(title):
                formatter.write_dl(list(rows.values()))


def sectioned(command: str, records: Mapping[str, tuple[str, str]], rest: str) -> dict[str, dict[str, tuple[str, str]]]:
    """The records in the sections of `command`. Those of no section come last, under the title `rest`."""
    named = SECTIONS.get(command, {})
    found = {title: {name: records[name] for name in names if name in records} for title, names in named.items()}
    known = {name for names in named.values() for name in names}
    found[f"More {rest.lower()}" if named else rest] = {n: record for n, record in records.items() if n not in known}
    return {title: rows for title, rows in found.items() if rows}


def with_examples(command: click.Command, name: str) -> click.Command:
    """`command`, whose help ends with its example."""
    if (example := EXAMPLES.get(name)) is not None and "Example" not in (command.epilog or ""):
        epilog = "\b\n" + _examples(example)
        command.epilog = f"{command.epilog}\n\n{epilog}" if command.epilog else epilog
    return command


def _examples(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return f"{'Examples' if len(lines) > 1 else 'Example'}:\n" + "\n".join(f"  {line}" for line in lines)
