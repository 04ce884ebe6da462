"""How much each word of a text moved a model's answer: gradient times input, summed over a word's tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Sample
from ddp_ft.data.text.processor import TextProcessor
from ddp_ft.data.text.source import PAIR, TEXT
from ddp_ft.data.text.tokenizer import tokenizer_of
from ddp_ft.inference.trained_model import Trained


class Word(NamedTuple):
    """A word that the model sees: its place in the text, and its weight; 0 where weights were not computed."""

    start: int
    end: int
    weight: float


def words_of(model: Trained, sample: Sample, weighs: bool) -> list[list[Word]]:
    """The words of the text, or of both of a pair, in order; without weights if the model has no embedding of tokens.

    A positive weight raised the model's largest output over the mean of all. It is a first-order estimate (Denil et
    al., arXiv 1412.6815), not what the model would say without the word.
    """
    processor = model.processor
    assert isinstance(processor, TextProcessor)
    found = tokenizer_of(processor.tokenizer, processor.length)(sample[TEXT], sample.get(PAIR))
    weights = _token_weights(model, sample) if weighs else None
    texts: list[list[Word]] = [[] for name in (TEXT, PAIR) if name in sample]
    newest = None
    for place, (word, text) in enumerate(zip(found.word_ids, found.sequence_ids, strict=True)):
        if text is None:  # a special token
            continue
        (start, end), weight = found.offsets[place], float(weights[place]) if weights is not None else 0.0
        if word is not None and (text, word) == newest:
            before = texts[text].pop()
            start, weight = before.start, before.weight + weight
        texts[text].append(Word(start, end, weight))
        newest = (text, word)
    return texts


def _token_weights(model: Trained, sample: Sample) -> Tensor | None:
    """Of each token (tokens,); None if the model has no embedding of tokens."""
    embedding = getattr(model.module, "get_input_embeddings", lambda: None)()
    if not isinstance(embedding, nn.Module):
        return None
    transform, to_device = model.processor.eval_transform(), model.processor.on_device(torch.device("cpu"), False)
    batch = to_device(transform.collate([transform(sample)]))
    kept: list[Tensor] = []
    with torch.enable_grad(), embedding.register_forward_hook(_as_leaf(kept)):
        outputs = model.call(model.module.eval(), batch)[0].float()
        score = outputs.max() - outputs.mean() if len(outputs) > 1 else outputs[0]
        [gradient] = torch.autograd.grad(score, kept)
    return (gradient * kept[0]).sum(-1)[0].detach()


def _as_leaf(kept: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that lets gradients end at the module's output, which it keeps."""

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    return hook
