"""One run, from what is asked for to its summary."""

from ddp_ft.run.start import fine_tune

__all__ = ["fine_tune"]
