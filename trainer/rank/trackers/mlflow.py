"""MLflow, as read in mlflow 3.17: a relaunch goes on in the runs of the first attempt. Its store takes nothing back, so
what is there stays: a step of a metric is not logged a second time, nor a parameter.

Fluent calls, autologging, Hugging Face and Lightning all use this client.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .going_on import GoingOn


class _Run:
    """A run of an earlier attempt."""

    def __init__(self, client: Any, run: Any) -> None:
        self._id = run.info.run_id
        self._params = frozenset(run.data.params)
        self._client = client
        self._last: dict[str, int] = {}

    def has(self, key: str, step: int | None) -> bool:
        """Whether it has that step of the metric, or has got past it. A metric that was never at another step than 0 is
        no curve, and may change."""
        if key not in self._last:
            try:
                points = self._client.get_metric_history(self._id, key)
            except Exception:
                return False  # the call that follows says why
            self._last[key] = max((each.step for each in points), default=0)
        return self._last[key] > 0 and (step or 0) <= self._last[key]

    def has_param(self, key: str) -> bool:
        return key in self._params


def _client(module: ModuleType, going_on: GoingOn) -> None:
    kind: Any = module.MlflowClient
    create, log_metric, log_param, log_batch = kind.create_run, kind.log_metric, kind.log_param, kind.log_batch
    earlier: dict[str, _Run] = {}

    @functools.wraps(create)
    def create_run(self: Any, experiment_id: str, *args: Any, **kwargs: Any) -> Any:
        made: list[Any] = []

        def choose() -> str:
            made.append(create(self, experiment_id, *args, **kwargs))
            return str(made[-1].info.run_id)

        name = going_on.recall(f"mlflow {getattr(self, 'tracking_uri', '')} {experiment_id}", choose)
        if made:
            return made[-1]
        try:
            self.update_run(name, status="RUNNING")
            run = self.get_run(name)
            if run.info.lifecycle_stage == "active":
                earlier[name] = _Run(self, run)
                return run
        except Exception:
            pass  # the store is another one now, or the run was deleted
        return create(self, experiment_id, *args, **kwargs)

    @functools.wraps(log_metric)
    def metric(
        self: Any, run_id: str, key: str, value: Any, timestamp: Any = None, step: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if (run := earlier.get(run_id)) is not None and run.has(key, step):
            # An asynchronous call returns something to wait for.
            return log_batch(self, run_id, synchronous=False) if kwargs.get("synchronous") is False else None
        return log_metric(self, run_id, key, value, timestamp, step, *args, **kwargs)

    @functools.wraps(log_param)
    def param(self: Any, run_id: str, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if (run := earlier.get(run_id)) is not None and run.has_param(key):
            return value
        return log_param(self, run_id, key, value, *args, **kwargs)

    @functools.wraps(log_batch)
    def batch(self: Any, run_id: str, metrics: Any = (), params: Any = (), *args: Any, **kwargs: Any) -> Any:
        if (run := earlier.get(run_id)) is not None:
            metrics = [each for each in metrics if not run.has(each.key, each.step)]
            params = [each for each in params if not run.has_param(each.key)]
        return log_batch(self, run_id, metrics, params, *args, **kwargs)

    kind.create_run, kind.log_metric, kind.log_param, kind.log_batch = create_run, metric, param, batch


HOOKS = {"mlflow.tracking.client": _client}
