"""The numbers of runs in Prometheus' text format, named by its conventions: base units, `_total` for what only grows.

See https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor.core.words import RunState
from supervisor.reading.local_time import moment

Body = Mapping[str, Any]
_Lines = dict[tuple[str, ...], Any]
"""Values by the labels after the run's."""
_Family = tuple[str, list[str], str, Callable[[Body, Body], _Lines]]
"""Name, labels after the run's, help, and the lines for a run."""


def exposition(runs: Iterable[tuple[str, Body, Body]]) -> bytes:
    """The text for some runs, each as its name, its `status --json` and its `report --json`. What is not known has no
    line. The names differ: a copy of a run has the original's id."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs(list(runs)))
    return generate_latest(registry)


class _Runs(Collector):
    """One family for each name, with the lines of every run."""

    def __init__(self, runs: list[tuple[str, Body, Body]]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        yield self._info()
        for name, labels, text, lines in _GAUGES:
            yield self._filled(GaugeMetricFamily(f"supervise_{name}", text, labels=["run", *labels]), lines)
        for name, labels, text, lines in _COUNTERS:
            yield self._filled(CounterMetricFamily(f"supervise_{name}", text, labels=["run", *labels]), lines)

    def _info(self) -> Metric:
        family = InfoMetricFamily("supervise_run", "What the run is", labels=["run"])
        for name, now, _ in self._runs:
            script = " ".join([*(["-m"] if now["module"] else []), now["command"][0]])
            about = {"script": script, "host": now["host"], "nproc": now["nproc"], "folder": now["run_dir"]}
            about["commit"] = (now.get("git") or {}).get("commit")
            named = {key: _text(value) for key, value in about.items() if value is not None}
            family.add_metric([_text(name)], named)
        return family

    def _filled(self, family: Any, lines: Callable[[Body, Body], _Lines]) -> Metric:
        for name, now, told in self._runs:
            for labels, value in lines(now, told).items():
                if value is not None:
                    family.add_metric([_text(name), *map(_text, labels)], float(value))
        filled: Metric = family
        return filled


def _text(value: object) -> str:
    """The value as a label: a name of a file need not be text, and one that cannot be written takes all runs' numbers
    along."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _key(key: str, factor: float = 1.0) -> Callable[[Body, Body], _Lines]:
    """One line, with the value of that key of the status."""
    return lambda now, _: {} if now.get(key) is None else {(): now[key] * factor}


def _told(key: str) -> Callable[[Body, Body], _Lines]:
    """One line, with the value of that key of the report."""
    return lambda _, told: {(): told[key]}


def _states(now: Body, _: Body) -> _Lines:
    return {(state.value,): now["state"] == state for state in RunState}


def _checkpoint(now: Body, _: Body) -> _Lines:
    return {} if now["checkpoint"] is None else {(): now["checkpoint"]["step"]}


def _age(now: Body, _: Body) -> _Lines:
    return {} if now["checkpoint"] is None else {(): now["checkpoint"]["age_s"]}


def _beats(now: Body, _: Body) -> _Lines:
    return {(str(worker["rank"]),): worker["beat_age_s"] for worker in now["workers"]}


def _standby(now: Body, _: Body) -> _Lines:
    return {(): now["standby"] is not None and now["standby"]["kind"] != "none"}


def _started(now: Body, _: Body) -> _Lines:
    began = moment(now["started"] or "")
    return {(): began.timestamp()} if began else {}


def _failures(_: Body, told: Body) -> _Lines:
    found: _Lines = {}
    for attempt in told["attempts"]:
        if (cause := attempt["cause"]) not in (None, "finished", "stopped_by_user", "preempted"):
            found[(cause,)] = found.get((cause,), 0) + 1
    return found


def _ledger(_: Body, told: Body) -> _Lines:
    return {(key.removesuffix("_s"),): seconds for key, seconds in told["ledger"].items()}


_GAUGES: tuple[_Family, ...] = (
    ("run_state", ["state"], "1 for the state that the run is in", _states),
    ("run_started_timestamp_seconds", [], "When the run began", _started),
    ("step", [], "Steps that the run has done", _key("step")),
    ("steps_wanted", [], "Steps that the program will have done at its end", _key("total")),
    ("step_duration_seconds", [], "Time of a step, the median of the last looks", _key("step_ms", 1e-3)),
    ("remaining_seconds", [], "Time to the last step, at this speed", _key("eta_s")),
    ("loss", [], "The last loss that the program told", _key("loss")),
    ("learning_rate", [], "The last learning rate that the program told", _key("lr")),
    ("attempt", [], "The number of the attempt, from 0", _key("attempt")),
    ("checkpoint_step", [], "Step of the newest checkpoint", _checkpoint),
    ("checkpoint_age_seconds", [], "Age of the newest checkpoint", _age),
    ("beat_age_seconds", ["rank"], "Time since the rank last moved", _beats),
    ("standby_ready", [], "1 if the next worker group waits", _standby),
    ("goodput_ratio", [], "Share of the time spent on steps for the first time", _told("goodput")),
    # No counter: what was taken for steps turns out to be a hang, or a save, and moves to another category.
    ("time_seconds", ["category"], "What the time of the run was spent on; the categories add up to it", _ledger),
)
_COUNTERS: tuple[_Family, ...] = (
    ("restarts", [], "Launches after the first", _key("restarts")),
    ("lost_steps", [], "Steps that failures have lost", _told("lost_steps")),
    ("failures", ["cause"], "Attempts that failed, by cause", _failures),
)
