"""Texts as a Python program gives them: str, files, pairs."""

import os
from typing import Any

from torch import Tensor

from ddp_ft.config.paths import path_of
from ddp_ft.contracts import Batch, Processor, Sample
from ddp_ft.data.text.inputs import inputs_of
from ddp_ft.data.text.read import read_text
from ddp_ft.data.text.source import PAIR, TEXT
from ddp_ft.errors import UserError


def is_one(given: Any) -> bool:
    """Whether it is one sample: everything but a list. A tuple is a pair."""
    return not isinstance(given, list)


def sample_of(given: Any, processor: Processor) -> Sample:
    """The text, or the pair, as a sample. UserError for what is neither; raises BadSample for a file that is no
    text."""
    if isinstance(given, tuple) and len(given) == 2:
        first, second = given
        return {TEXT: _text_of(first), PAIR: _text_of(second)}
    return {TEXT: _text_of(given)}


def _text_of(given: Any) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return read_text(str(path_of(os.fspath(given))))
    raise UserError(f"A {type(given).__name__} is no text.", "Expected a str, a Path of a file, or a tuple of two.")


def prepared_of(batch: Batch) -> dict[str, Tensor]:
    """The arguments of the network, int64 1 x tokens each, of a prepared batch of one."""
    return inputs_of(batch)
