"""Services that show curves of many runs: MLflow, Weights & Biases.

Each runs in a process of its own, without torch (`host`), which `trackers.background` feeds. A new service is one new
module with a class that has the methods of `host.Service`, and one line in `SERVICES`.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_ft.errors import UserError, nearest

Row = Mapping[str, Any]

# Name -> class of this package, which is also that of the library and of the extra that installs it.
SERVICES = {
    "mlflow": "ddp_ft.trackers.services.mlflow:Mlflow",
    "wandb": "ddp_ft.trackers.services.wandb:WeightsAndBiases",
}


@dataclass(frozen=True)
class Start:
    """What a service is told at each start of a run.

    `recipe` and `lengths` are configuration keys with their values; the first never change. `kept` holds the rows of
    metrics.jsonl of the steps that will not run again: what the service lacks of them is sent now.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    lengths: Mapping[str, Any]
    kept: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where services keep what they need to go on with, and what their libraries print."""
        return self.run_dir / "trackers"


def service_names(text: str | None) -> list[str]:
    """The names in the value of log.trackers. UserError for one that is unknown, or whose library is not installed."""
    names = list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            known = f"Known are {', '.join(SERVICES)}; TensorBoard and metrics.jsonl are always written."
            raise UserError(
                f"--track (log.trackers): there is no tracker '{name}'.", nearest(name, [*SERVICES]) or known
            )
        if importlib.util.find_spec(name) is None:  # looks without importing, which takes seconds
            hint = f"Install it: pip install 'ddp_ft[{name}]'. Or leave out --track {name}."
            raise UserError(f"--track {name} needs the package {name}, which is not installed.", hint)
    return names
