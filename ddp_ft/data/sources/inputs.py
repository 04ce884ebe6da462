"""What `predict` is given, as a source: of the kind that the model takes."""

import importlib
from collections.abc import Sequence

from ddp_ft.contracts import Source
from ddp_ft.errors import UserError

# Modules with a function `open_inputs(inputs, column)`, by the kind of input (`data.processors`).
INPUTS = {"image": "ddp_ft.data.sources.predict_inputs"}


def open_inputs(kind: str, inputs: Sequence[str], column: str | None = None) -> Source:
    """Samples without targets, in the order of the arguments. UserError for what is not there."""
    if kind not in INPUTS:
        raise UserError(f"Nothing is known of inputs of the kind '{kind}'.", f"Known: {', '.join(INPUTS)}.")
    source: Source = importlib.import_module(INPUTS[kind]).open_inputs(inputs, column)
    return source
