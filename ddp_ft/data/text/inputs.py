"""A prepared batch of tokens as the arguments of transformers' networks."""

import torch
from torch import Tensor

from ddp_ft.contracts import Batch
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.text.tokenizer import SECOND, TOKENS

# Names of the arguments.
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The arguments by their names, int64 B x tokens each."""
    tokens, lengths = batch[TOKENS], batch[f"{TOKENS}{LENGTH}"]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    given = {IDS: tokens}
    if not tokens.is_meta:  # transformers looks at the values of a mask
        given[MASK] = (places < lengths.unsqueeze(1)).long()
    if SECOND in batch:
        given[TYPES] = ((places >= batch[SECOND].unsqueeze(1)) & (places < lengths.unsqueeze(1))).long()
    return given
