"""Services that show curves of many runs: MLflow, Weights & Biases.

Each runs in a process of its own, without torch (`host`), which `background` feeds. A new service is one new
module with a class that has the methods of `base.Service`, and one line in `SERVICES`.
"""

import importlib.util

from ddp_ft.errors import UserError, nearest

# Name -> class of this package, which is also that of the library and of the extra that installs it.
SERVICES = {
    "mlflow": "ddp_ft.trackers.services.mlflow:Mlflow",
    "wandb": "ddp_ft.trackers.services.wandb:WeightsAndBiases",
}


def service_names(text: str | None) -> list[str]:
    """The names in the value of log.trackers. UserError for one that is unknown, or whose library is not installed."""
    names = list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            known = f"Known: {', '.join(SERVICES)}; TensorBoard and metrics.jsonl are always written."
            hint = nearest(name, [*SERVICES]) or known
            raise UserError(f"--track (log.trackers): there is no tracker '{name}'.", hint)
        if importlib.util.find_spec(name) is None:  # finds it without importing it, which takes seconds
            hint = f"Install it: pip install 'ddp_ft[{name}]'. Or leave out --track {name}."
            raise UserError(f"--track {name} needs the package {name}, which is not installed.", hint)
    return names
