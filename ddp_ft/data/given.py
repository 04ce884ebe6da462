"""Samples as a Python program gives them, of any kind that models take."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from ddp_ft.contracts import BadSample, Batch, Processor
from ddp_ft.data.image.given import ImageLike
from ddp_ft.errors import UserError

# Modules that know them: `is_one(given)`, `sample_of(given, processor)`, and `prepared_of(batch)`, what the network
# takes of a prepared batch of one. A further kind is a line here.
_KINDS = {"image": "ddp_ft.data.image.given", "text": "ddp_ft.data.text.given"}

# An image, a text (str, or a Path of its file), or a pair of texts.
Given = ImageLike | tuple[str, str]


class GivenSamples:
    """What a processor's kind of samples may be given as. UserError for a kind that no program can give."""

    def __init__(self, processor: Processor) -> None:
        if processor.kind not in _KINDS:
            raise UserError(f"This model takes input of the kind '{processor.kind}'.", "Use ddp-ft predict.")
        self._processor = processor
        self._kind = importlib.import_module(_KINDS[processor.kind])

    def is_one(self, given: Any) -> bool:
        """Whether it is one sample, and not several."""
        return bool(self._kind.is_one(given))

    def batch(self, given: Sequence[Any], processor: Processor) -> Batch:
        """The samples as that processor loads them, with their "index". UserError for what is none."""
        transform = processor.eval_transform()
        try:
            samples = [transform(self._kind.sample_of(each, self._processor)) for each in given]
        except BadSample as error:
            raise UserError(str(error)) from None
        return {**transform.collate(samples), "index": torch.arange(len(given))}

    def prepared(self, batch: Batch) -> Any:
        """What the network takes of a prepared batch of one."""
        return self._kind.prepared_of(batch)
