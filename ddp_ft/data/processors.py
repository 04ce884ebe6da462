"""The kinds of input that models take, and the processor of each."""

import importlib
from collections.abc import Mapping
from typing import Any, cast

from ddp_ft.contracts import Processor
from ddp_ft.errors import UserError

# Module and class of each kind; imported when asked for. A further kind is one package in `data/` and one line here.
PROCESSORS = {"image": "ddp_ft.data.image.processor:ImageProcessor"}


def processor_from(values: Mapping[str, Any]) -> Processor:
    """The processor that `to_mapping` described, in model.json; without a "kind" it is for images.

    UserError for a kind that is not known, KeyError for a value that is missing.
    """
    kind = values.get("kind", "image")
    if kind not in PROCESSORS:
        raise UserError(
            f"The model takes input of the kind '{kind}', which is not known.", f"Known: {', '.join(PROCESSORS)}."
        )
    module, _, name = PROCESSORS[kind].partition(":")
    return cast(Processor, getattr(importlib.import_module(module), name).from_mapping(values))
