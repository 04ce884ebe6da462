"""ddp_ft: fine-tune pretrained vision models on one CPU, one GPU or many nodes with one command."""

from typing import TYPE_CHECKING, Any

from ddp_ft.version import __version__

if TYPE_CHECKING:
    from ddp_ft.inference.api import Model, Prediction, load

__all__ = ["Model", "Prediction", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` and the classes of its results, imported when they are used: they need torch."""
    if name in ("Model", "Prediction", "load"):
        import importlib

        return getattr(importlib.import_module("ddp_ft.inference.api"), name)
    raise AttributeError(f"module 'ddp_ft' has no attribute '{name}'")
