"""MLflow: by default a SQLite file beside the run folders, else MLFLOW_TRACKING_URI."""

import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from ddp_ft.trackers.services.base import Log, Row, Start
from ddp_ft.trackers.services.curves import points
from ddp_ft.trackers.services.host import read_facts, write_facts
from ddp_ft.version import __version__

# Limits of a request, by MLflow's own checks.
LONGEST_VALUE, PARAMS_AT_ONCE, METRICS_AT_ONCE = 6000, 100, 1000
GONE = "RESOURCE_DOES_NOT_EXIST"
EXPERIMENT = "ddp_ft"


class Mlflow:
    """One run of MLflow for a run folder, over all its starts.

    MLflow keeps every value that it is sent, also two of the same step. So its steps are read once at the start; only
    values of other steps are sent, those of the kept rows too.
    """

    def __init__(self, start: Start, log: Log) -> None:
        home = start.run_dir.resolve().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
        self._client = MlflowClient(uri)
        self._run_id = self._earlier_run(start) or self._new_run(start, home, uri)
        self._finished, self._step = False, 0
        for name, value in start.lengths.items():
            self._client.set_tag(self._run_id, name, str(value))
        self._client.update_run(self._run_id, status="RUNNING")
        log(f"MLflow: run {self._run_id} in {uri}")
        self._known = self._known_steps()
        missing = (metric for row in start.kept for metric in self._lacking(row))
        while some := list(islice(missing, METRICS_AT_ONCE)):
            self._client.log_batch(self._run_id, metrics=some)

    def _earlier_run(self, start: Start) -> str | None:
        """The run of earlier starts, if this server has it and it is not deleted."""
        run_id = read_facts(start, "mlflow").get("run_id")
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            return None
        return run_id if run.info.lifecycle_stage == "active" else None

    def _new_run(self, start: Start, home: Any, uri: str) -> str:
        tags = {"ddp_ft.run_folder": str(start.run_dir.resolve()), "ddp_ft.version": __version__}
        run = self._client.create_run(self._experiment(home, uri), tags=tags, run_name=start.run_dir.resolve().name)
        params = (Param(name, str(value)[:LONGEST_VALUE]) for name, value in start.recipe.items())
        while some := list(islice(params, PARAMS_AT_ONCE)):
            self._client.log_batch(run.info.run_id, params=some)
        write_facts(start, "mlflow", {"run_id": run.info.run_id})
        return str(run.info.run_id)

    def _experiment(self, home: Any, uri: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            artifacts = (home / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            try:
                return str(self._client.create_experiment(name, artifacts))
            except MlflowException:  # another run was quicker, or we must not
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _known_steps(self) -> dict[str, set[int]]:
        names, history = self._client.get_run(self._run_id).data.metrics, self._client.get_metric_history
        return defaultdict(set, {name: {each.step for each in history(self._run_id, name)} for name in names})

    def log(self, row: Row) -> None:
        """As of Service."""
        self._send(self._lacking(row))

    def _send(self, metrics: Sequence[Metric]) -> None:
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def _lacking(self, row: Row) -> list[Metric]:
        self._step = int(row["step"])
        return self._new(dict(points(row)), row["time"])

    def _new(self, values: Mapping[str, float], seconds: float) -> list[Metric]:
        """The values of the present step that MLflow lacks, which count as sent from now on."""
        found = []
        for name, value in values.items():
            key = _allowed(name)
            if self._step not in self._known[key] and math.isfinite(value):
                self._known[key].add(self._step)
                found.append(Metric(key, float(value), int(seconds * 1000), self._step))
        return found

    def warn(self, step: int, text: str) -> None:
        """As a tag."""
        self._client.log_batch(self._run_id, tags=[RunTag(f"warning.{step}", text[:LONGEST_VALUE])])

    def image(self, tag: str, step: int, png: bytes) -> None:
        """As an artifact with the step in its name, so that an image that is drawn again replaces it."""
        image = Image.open(BytesIO(png))
        self._client.log_image(self._run_id, image, artifact_file=f"images/{_allowed(tag)}/step_{step:08d}.png")

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """As of Service."""
        self._send(self._new({f"best/{name}": value for name, value in metrics.items()}, time.time()))
        self._finished = True

    def close(self) -> None:
        """Record the way in which the run ended."""
        self._client.set_terminated(self._run_id, "FINISHED" if self._finished else "KILLED")


def _allowed(name: str) -> str:
    """The name without characters that MLflow does not allow."""
    return re.sub(r"[^\w\-./ ]", "_", name)
