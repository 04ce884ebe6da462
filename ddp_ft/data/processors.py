"""The kinds of input that models take: the processor of each, and what opens the inputs of `predict`."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ddp_ft.contracts import Kept, Processor, Source, nothing_kept
from ddp_ft.errors import UserError

# Module and class of each kind's processor; imported when needed. A further kind is one package in `data/` and one line
# here, for `predict` one below, and for `ddp_ft.load` one in `data/given.py`.
PROCESSORS = {
    "image": "ddp_ft.data.image.processor:ImageProcessor",
    "text": "ddp_ft.data.text.processor:TextProcessor",
}
# Modules with a function `open_inputs(inputs, column)`.
INPUTS = {"image": "ddp_ft.data.sources.predict_inputs", "text": "ddp_ft.data.sources.text_inputs"}


def processor_from(values: Mapping[str, Any], kept: Kept = nothing_kept) -> Processor:
    """The processor that `to_mapping` described, in model.json; without a "kind" it is for images.

    UserError for a kind that is not known, KeyError for a value that is missing, OSError for a file.
    """
    module, _, name = _known(PROCESSORS, values.get("kind", "image")).partition(":")
    return cast(Processor, getattr(importlib.import_module(module), name).from_mapping(values, kept))


def open_inputs(kind: str, inputs: Sequence[str], column: str | None = None) -> Source:
    """Samples without targets, in the order of the arguments. UserError for arguments that do not exist."""
    return cast(Source, importlib.import_module(_known(INPUTS, kind)).open_inputs(inputs, column))


def _known(table: Mapping[str, str], kind: str) -> str:
    if kind not in table:
        hint = f"Known: {', '.join(table)}."
        raise UserError(f"The model takes input of the kind '{kind}', which is not known.", hint)
    return table[kind]
