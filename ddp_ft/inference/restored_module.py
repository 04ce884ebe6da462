"""A network built from its description, which may be of a file that has changed since."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ddp_ft.errors import UserError, printable
from ddp_ft.models import create_from_spec
from ddp_ft.plugins import digest_of
from ddp_ft.run_folder.model_folder import restore_weights


def restored_module(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The module with these weights. If its file has changed since it was trained: a warning, or a UserError that names
    that, too."""
    name = str(description.get("name"))
    then, now = description.get("code"), digest_of(name)
    changed = f"{printable(name.rpartition(':')[0])} has changed since this model was trained with it"
    if then and now and then != now:
        warnings.warn(f"{changed} (SHA-256 {then[:12]} then, {now[:12]} now).", stacklevel=4)
    try:
        module = create_from_spec(description)
        restore_weights(module, weights)
    except UserError as error:
        if not then or then == now:
            raise
        missing = changed if now else f"{printable(name.rpartition(':')[0])} is not there"
        hint = f"{missing}: use the file as it was then (SHA-256 {then}). {error.hint}".strip()
        raise UserError(error.message, hint) from error
    return module
