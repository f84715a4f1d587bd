"""The README is true: its examples run, and its tables name what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import torch

from supervisor.commands import launch
from supervisor.commands.cli import COMMANDS
from tests.support.jobs import environment
from tests.support.supervised import ROOT, Run
from trainer.checkpoint.disk.restore import load
from trainer.rundir.layout import step_name
from trainer.rundir.records.fault_kinds import FAULTS, KEYS, Kind

README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
FAULTS_PAGE = (ROOT / "docs" / "faults.md").read_text()
CHECKPOINTS = (ROOT / "docs" / "checkpoints.md").read_text()


def example(name: str) -> str:
    """The code block under `<!-- example: name -->`."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", README + CHECKPOINTS, re.S)
    assert found
    return found[1]


def test_checkpointer_example(run: Run, tmp_path: Path) -> None:
    """The five lines survive a kill with the same bits, and are five."""
    code = example("checkpointer.py")
    run.script(code, "checkpointer.py")
    assert run.launch("--nproc", "2", "--inject", "kill:rank=1@step=35", "checkpointer.py") == 0
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.folder.mkdir()
    undisturbed.script(code, "checkpointer.py")
    assert undisturbed.launch("--nproc", "2", "checkpointer.py") == 0

    assert run.verdicts()[0] == ("killed", 1)
    ends = [load(r.dir.checkpoints / step_name(60), 0).shared for r in (run, undisturbed)]
    assert torch.equal(ends[0]["model"]["weight"], ends[1]["model"]["weight"])
    assert len(re.findall(r"  # [1-5]", code)) == 5


def test_plain_example(tmp_path: Path) -> None:
    """The two plain functions give back what was saved."""
    done = subprocess.run(
        [sys.executable, "-c", example("plain.py")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["7", "{'lr':", "0.001}"]


def test_tables_are_complete() -> None:
    """Every command stands in the README or the reference, every exit code in the reference."""
    parts = [re.search(r"## (?:More )?[Cc]ommands\n(.*?)\n## ", page, re.S) for page in (README, REFERENCE)]
    commands = "".join(part[1] for part in parts if part is not None)
    assert all(parts)
    assert [name for name in COMMANDS if f"`{name}" not in commands] == []
    assert [code for code in (0, 1, 2, 75, 100, 103, 104, 105, 106, 108) if f"| {code} |" not in REFERENCE] == []


def test_options_are_as_declared() -> None:
    """The reference has a line for each option of launch, as its declaration has it."""
    options = [p for p in launch.command.params if isinstance(p, click.Option) and not p.hidden]
    records = [option.get_help_record(click.Context(launch.command)) or ("", "") for option in options]
    rows = [f"| `{flag}` | {text} |" for flag, text in (map(_in_a_table, record) for record in records)]
    assert [line for line in REFERENCE.partition("\n## Exit codes")[0].splitlines() if line.startswith("| `")] == rows


def _in_a_table(text: str) -> str:
    return text.replace("|", r"\|").replace("  [", " [").replace("<", r"\<")


def row(name: str, kind: Kind) -> str:
    """The line of docs/faults.md that tells what the table of faults has under `name`."""
    seen = [*(f"`{cause}`" for cause in sorted(kind.causes)), *([f"event `{kind.event}`"] if kind.event else [])]
    keys = " ".join(f"`{key}`" for key in kind.keys)
    return f"| `{name}` | {keys} | {kind.strikes} | {kind.by.value} | {' or '.join(seen) or 'nobody may notice it'} |"


def test_faults_are_as_their_table_says() -> None:
    """The page has a line for each fault, as the table has it, and tells of each in words; the reference has each
    key."""
    listed = FAULTS_PAGE.partition("## What `--inject` takes")[2]
    assert [line for line in listed.splitlines() if line.startswith("| `")] == [row(*item) for item in FAULTS.items()]
    assert [name for name in FAULTS if f"`{name}`" not in FAULTS_PAGE.removesuffix(listed)] == []
    assert [key for key, what in KEYS.items() if f"`{key}` ({what})" not in REFERENCE] == []
    assert {key for kind in FAULTS.values() for key in kind.keys} == KEYS.keys()


def shown(page: str) -> list[list[str]]:
    """What must be the same in every language: code, code in the text, links, pictures, and the figures of tables."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M)
    figures = [line for line in text.splitlines() if line.startswith("| ") and re.search(r"\*\*|%|\d s", line)]
    return [
        re.findall(r"^```.*?^```$", page, re.S | re.M),
        sorted(re.findall(r"`[^`]+`", text)),
        sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh.md"}),
        [" ".join(re.findall(r"\d+\.\d+ (?:%|s|x)", line)) for line in figures],
    ]


def test_both_languages_show_the_same() -> None:
    """The page in Chinese has the same examples, commands, options, links and figures."""
    assert shown((ROOT / "README.zh.md").read_text()) == shown(README)


def test_links_lead_somewhere() -> None:
    """Every link of a page to a file or a heading of this project has its target."""
    pages = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert [f"{page.name}: {link}" for page in pages for link in _links(page) if not _leads(page, link)] == []


def _links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M))
    return [link for link in found if "://" not in link]


def _leads(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (
        not heading or heading in map(_anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.M))
    )


def _anchor(heading: str) -> str:
    """The name of a heading in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
