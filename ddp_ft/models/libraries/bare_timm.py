"""timm, imported without Weights & Biases.

timm's helper for logs, which nothing here uses, imports wandb if it is installed. That takes as long as the rest of
timm: 0.5 s of CPU time in each process (timm 1.0.31, wandb 0.31).
"""

import sys

_is_new = "wandb" not in sys.modules
if _is_new:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it now fails as if it were not installed
try:
    import timm
    from timm import data, models, optim, utils
finally:
    if _is_new:
        del sys.modules["wandb"]

__all__ = ["data", "models", "optim", "timm", "utils"]
