"""Programs with an option to resume: `--resume`, `--resume_from_checkpoint`, `--load_checkpoint_dir` and the like.

The option's own declaration shows the form of the value: a flag, `true`, the number of a step, a word that its help or
the script names, a folder, a file. If nothing shows it, the value is the path.
"""

from __future__ import annotations

import posixpath
import re

from . import line, names
from .program import Option, Parser, Program
from .protocol import Case, Checkpoint, Plan, refusal

_COUNTERS = ("epoch_count", "load_run")
"""Options that --resume needs: else a program begins its count anew, or takes the saves of another run."""
_WORDS = ("latest", "auto", "last")
_BOOLS = ("str2bool", "bool_arg", "strtobool", "boolean", "str_to_bool", "parse_bool", "_str_to_bool", "string_to_bool")


class Generic:
    name = "generic"

    def knows(self, program: Program) -> bool:
        return bool(_candidates(program))

    def plan(self, case: Case) -> Plan | None:
        found = _candidates(case.program)
        for parser, option in found:
            if line.given(case.program, parser, option, case.arguments):
                return refusal(f"{option.names[-1]} was given: it stays as it is")
        if reset := _reset(case):
            return refusal(f"{reset} is given: with it the program does not resume")
        if not case.checkpoints:
            return None
        if alone := next((name for name in _COUNTERS if case.program.option(name)), None):
            return refusal(f"with {found[0][1].names[-1]} alone it would count from 0 again: it also needs --{alone}")
        for parser, option in found:
            if plan := _planned(case, parser, option):
                return plan
        what = " and ".join(option.names[-1] for _, option in found)
        return refusal(f"{what}: it takes none of the saved files")


def _candidates(program: Program) -> list[tuple[Parser, Option]]:
    """Options that mean a resume, those with the plainest name first."""
    found = [(parser, option) for parser, option in program.options() if _means_resume(option)]
    return sorted(
        found, key=lambda each: (each[1].plain not in ("resume", "resume_from_checkpoint"), len(each[1].plain))
    )


def _means_resume(option: Option) -> bool:
    if not names.RESUME.fullmatch(option.plain) or option.action in ("store_false", "help", "version", "append"):
        return False
    if names.AMBIGUOUS.fullmatch(option.plain) and not names.SAYS_RESUME.search(option.help):
        return False
    weights_only = names.WEIGHTS_ONLY.search(option.help)
    return not weights_only or bool(names.SAYS_RESUME.search(option.help) and "only" not in weights_only[0])


def _reset(case: Case) -> str | None:
    """A given option that throws away what a checkpoint holds, or means that nothing is trained."""
    for parser, option in case.program.options():
        if names.RESETS.fullmatch(option.plain) and line.given(case.program, parser, option, case.arguments):
            return option.names[-1]
    return None


def _planned(case: Case, parser: Parser, option: Option) -> Plan | None:
    counts = option.type == "int" and not option.is_flag
    if counts:
        newest = _numbered(case) if "step" in option.plain or "epoch" in option.plain else None
    else:
        newest = next((each for each in case.checkpoints if each.resumable is not False), None)
    if newest is None:
        return None
    value: str | None
    if option.is_flag:
        value = None
    elif option.type == "bool" or option.type in _BOOLS or (option.type in ("", "str") and _is_bool(option)):
        value = "True" if option.type == "bool" else "true"
    elif counts:
        value = str(newest.number)
    else:
        value = _word(case.program, option) or _place(newest)
        if option.choices and value not in option.choices:
            return None
    words = line.spelled(parser, option, value)
    last = parser.kind == "configurator"
    return Plan(" ".join(words), words, parser.after, last, checkpoint=newest)


def _is_bool(option: Option) -> bool:
    return (isinstance(option.default, bool) and option.nargs != "?") or {*map(str.lower, option.choices)} == {
        "true",
        "false",
    }


def _place(checkpoint: Checkpoint) -> str:
    # DeepSpeed is given the folder above, in which the file `latest` names the checkpoint.
    return posixpath.dirname(checkpoint.path) if checkpoint.kind == "deepspeed" else checkpoint.path


def _numbered(case: Case) -> Checkpoint | None:
    """The newest checkpoint with a number. It may be several files of one number: model, optimizer, one of each rank.
    Then none of the files may be missing that another number has."""
    groups: dict[tuple[str, int], dict[str, Checkpoint]] = {}
    for each in case.checkpoints:
        if each.number >= 0:
            folder, name = posixpath.split(each.path)
            part = re.sub(rf"0*{each.number}(?!\d)", "#", name, count=1)
            groups.setdefault((folder, each.number), {})[part] = each
    for (folder, _), parts in groups.items():
        whole = {part for (other, _), others in groups.items() if other == folder for part in others}
        one = next((each for each in parts.values() if each.resumable is not False), None)
        if one is None and whole <= parts.keys():
            one = next((each for part, each in parts.items() if names.OPTIMIZER.search(part)), None)
        if one is not None:
            return one
    return None


def _word(program: Program, option: Option) -> str | None:
    """A word in place of a path, if the program itself has it: in its help, its type, its choices, or its comparisons.
    Folders have such names, too, so in prose a word counts only in quotes. An option with an optional value has a
    meaning of its own without one, so it always gets the path."""
    if option.nargs == "?":
        return None
    known = {*option.choices, *program.words.get(option.dest or option.plain, ())}
    prose = f"{option.help} {option.type}"
    quoted = {word for word in _WORDS if any(f"{mark}{word}{mark}" in prose for mark in ("'", '"', "`"))}
    return next((word for word in _WORDS if word in known | quoted), None)
