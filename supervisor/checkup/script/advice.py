"""What a run of a script will be like, and what to change. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from supervisor.checkup.checks import Check, Verdict
from supervisor.checkup.script.source import Call, Source
from trainer.adapters.choice import Choice, choose
from trainer.adapters.program import Program
from trainer.adapters.protocol import Case, Checkpoint

_LIGHTNING = ("lightning", "pytorch_lightning")
_TRAINERS = ("transformers", "trl", "sentence_transformers", "optimum", "setfit")
_SAVES = {
    "torch.save": "torch.save",
    "safetensors.torch.save_file": "safetensors",
    "torch.distributed.checkpoint.save": "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.async_save": "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict_saver.save": "torch.distributed.checkpoint",
}
_LOADS = {"torch.load", "safetensors.torch.load_file", "torch.distributed.checkpoint.load"}
_TORN = {"pickle.dump", "joblib.dump", "dill.dump", "cloudpickle.dump"}
_EARLY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""Variables that torch or a library reads at its import, or that decide which GPUs there are."""
_OWN = ("trainer.Checkpointer", "supervise.Checkpointer")
_SAVED = Checkpoint("CHECKPOINT", step=100, number=100, resumable=True)
"""In place of what the program will have saved."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a trial import of the script's packages has shown."""

    missing: dict[str, str]
    """Packages that cannot be imported, with the error."""
    causes: dict[str, str]
    """Modules whose import does harm in a process that forks, with what it does."""
    seconds: float = 0.0
    """CPU seconds for all imports."""
    again: float = 0.0
    """Those of them for modules that each restart has to import again."""
    unknown: str = ""
    """Why the trial told nothing. Empty: it did."""


def findings(source: Source, arguments: Sequence[str], imported: Imported) -> list[Check]:
    """All of them, in the order in which a person asks."""
    kind = _Kind(source)
    choice = _choice(source, kind, arguments)
    checks = [_packages(source, imported), _saves(source, kind), _resume(source, kind, choice)]
    return [*checks, _standby(source, imported), *_variables(source)]


class _Kind:
    """Which frameworks it uses, and how it saves."""

    def __init__(self, source: Source) -> None:
        self.trainer = _first(c for c in source.calls if c.root in _TRAINERS and c.last.endswith("Trainer"))
        self.lightning = _first(c for c in source.calls if c.root in _LIGHTNING and c.last == "Trainer")
        self.own = _first(c for c in source.calls if c.name.startswith(_OWN) and c.last == "Checkpointer")
        accelerate = [c for c in source.calls if c.root == "accelerate"]
        self.accelerate = _first(c for c in accelerate if c.last == "save_state")
        self.hydra = _first(c for c in source.calls if c.name == "hydra.main")
        self.plain = [c for c in source.calls if c.name in _SAVES]
        self.fabric = [c for c in source.calls if c.name.endswith("Fabric.save")]
        self.loads = [c for c in source.calls if c.name in _LOADS or c.name.endswith(("Fabric.load", "load_state"))]
        self.torn = [c for c in source.calls if c.name in _TORN]

    @property
    def uses(self) -> frozenset[str]:
        found = {"huggingface": self.trainer, "lightning": self.lightning}
        return frozenset(name for name, call in found.items() if call is not None)


def _first(calls: Iterable[Call]) -> Call | None:
    return next(iter(calls), None)


def _choice(source: Source, kind: _Kind, arguments: Sequence[str]) -> Choice | None:
    """What a relaunch would be told, if the program had saved."""
    roots = frozenset(name.partition(".")[0] for name in source.imports)
    facts = {"hydra.run.dir": "the first launch's folder"} if kind.hydra else {}
    program = Program(source.parsers, kind.uses, roots, source.words, facts, trained=True)
    form, path = "file", _SAVED.path
    if kind.trainer or kind.lightning:
        form = "huggingface" if kind.trainer else "lightning"
    elif kind.accelerate:
        form = "accelerate"
    elif any(parser.kind == "configurator" for parser in source.parsers):
        path = "ckpt.pt"
    elif program.option("no_load_optim"):
        path = "CHECKPOINT/iter_0000100/model.pt"
    saved = Checkpoint(path, _SAVED.step, form, _SAVED.number, _SAVED.resumable)
    return choose(Case(program, ("script", *arguments), (saved,)))


def _packages(source: Source, imported: Imported) -> Check:
    if imported.unknown:
        return Check("imports", Verdict.WARN, imported.unknown)
    if imported.missing:
        each = [f"{name} ({source.imports.get(name, '')}): {why}" for name, why in imported.missing.items()]
        names = " ".join(sorted({name.partition(".")[0] for name in imported.missing}))
        hint = f"install {names}, unless the script does without"
        return Check("imports", Verdict.WARN, f"cannot be imported: {'; '.join(each)}", hint)
    return Check("imports", Verdict.OK, f"all its packages can be imported, in {imported.seconds:.1f} s")


def _saves(source: Source, kind: _Kind) -> Check:
    if kind.own:
        return Check("saves", Verdict.OK, f"by our Checkpointer ({kind.own.place})")
    if kind.trainer:
        off = _first(c for c in source.calls if c.given.get("save_strategy") == "no")
        if off:
            hint = 'save_strategy="steps", and save_steps= as often as you can lose'
            return Check("saves", Verdict.WARN, f"{off.place} turns the Trainer's checkpoints off", hint)
        return Check("saves", Verdict.OK, f"by {kind.trainer.last} ({kind.trainer.place}), each save_steps")
    if kind.lightning:
        if kind.lightning.given.get("enable_checkpointing") is False:
            hint = "remove enable_checkpointing=False"
            return Check("saves", Verdict.WARN, f"{kind.lightning.place} turns Lightning's checkpoints off", hint)
        if not any(c.last == "ModelCheckpoint" for c in source.calls):
            hint = "ModelCheckpoint(every_n_train_steps=…), as often as you can lose"
            return Check("saves", Verdict.OK, "by Lightning, at the end of each epoch alone", hint)
        return Check("saves", Verdict.OK, f"by Lightning ({kind.lightning.place})")
    found = [*filter(None, [kind.accelerate]), *kind.plain, *kind.fabric]
    if found:
        ways = sorted({_SAVES.get(call.name, call.name.partition(".")[0]) for call in found})
        return Check("saves", Verdict.OK, f"by {', '.join(ways)} ({_places(found)}); a kill does not tear such a save")
    if kind.torn:
        text = f"by {kind.torn[0].name} ({_places(kind.torn)}): a kill can tear it, and nobody sees it"
        return Check("saves", Verdict.WARN, text, "torch.save, or our Checkpointer")
    text = "no save was found in the script and its local modules: a restart begins at step 0"
    return Check("saves", Verdict.WARN, text, "torch.save and a way to load it, or our Checkpointer")


def _places(calls: Sequence[Call]) -> str:
    places = list(dict.fromkeys(call.place for call in calls))
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _resume(source: Source, kind: _Kind, choice: Choice | None) -> Check:
    if kind.own:
        if any(c.last == "restore" for c in source.calls):
            return Check("resume", Verdict.OK, "by Checkpointer.restore(), to the same bits")
        hint = "start = ckpt.restore() before the loop"
        return Check("resume", Verdict.WARN, "its Checkpointer is never asked to restore(): it begins at step 0", hint)
    saves = kind.trainer or kind.lightning or kind.accelerate or kind.plain or kind.fabric
    if choice is not None and choice.adapter != "hydra":
        say, name = choice.plan.say, choice.adapter
        if choice.plan.refused:
            hint = "an option such as --resume PATH, which it loads" if name == "accelerate" else ""
            return Check("resume", Verdict.WARN, f"adapter {name} tells it nothing: {say}", hint)
        verdict = Verdict.WARN if choice.plan.warn else Verdict.OK
        return Check("resume", verdict, f"adapter {name}: a relaunch is told to go on by {say}")
    if saves and kind.loads:
        where = " in the first launch's folder" if kind.hydra else ""
        text = f"no option to resume was found: it must find its own save{where} by itself ({_places(kind.loads)})"
        hint = "at its start it loads the newest save, if there is one"
        return Check("resume", Verdict.OK, text, hint)
    if saves:
        hint = "an option --resume PATH that loads model, optimizer and step; a relaunch then gets it"
        return Check("resume", Verdict.WARN, "it loads nothing: each restart begins at step 0", hint)
    return Check("resume", Verdict.WARN, "nothing to go on from: each restart begins at step 0")


def _standby(source: Source, imported: Imported) -> Check:
    if spawns := source.spawning:
        text = f"{spawns.place} starts the ranks itself: only the script is warm, its ranks import torch again"
        # Two of it would wait for each other's ranks at one port, or train twice.
        hint = "launch it without --nproc; if it leaves the start of its ranks to --nproc, they come back sooner"
        return Check("standby", Verdict.WARN, text, hint)
    if imported.unknown:
        return Check("standby", Verdict.WARN, "not known")
    if imported.causes:
        said = "; ".join(f"{module}: {what}" for module, what in imported.causes.items())
        text = f"warm but for {said}; imported again at each restart, {imported.again:.1f} s"
        return Check("standby", Verdict.WARN, text, "another version, or an import where it is used, not at the top")
    text = f"warm: a restart does not wait for the {imported.seconds:.1f} s of imports"
    return Check("standby", Verdict.OK, text)


def _variables(source: Source) -> list[Check]:
    early = {name: place for name, place in source.variables.items() if name in _EARLY}
    if not early:
        return []
    said = ", ".join(f"{name} ({place})" for name, place in early.items())
    text = f"set by the script: {said}. In a warm rank torch is imported by then, so it may have no effect"
    return [Check("variables", Verdict.WARN, text, "set it outside, or --no-standby")]
