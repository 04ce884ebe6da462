"""An exported model of texts compared with the original, on several lengths and in batches of several sizes."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddp_ft.contracts import BadSample, Batch, Source
from ddp_ft.data.batch import LENGTH
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.processors import open_inputs
from ddp_ft.data.text.processor import TextProcessor
from ddp_ft.data.text.tokenizer import PLACES, TOKENS, tokenizer_of
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.exporters.compare import BOUND, ROUNDS, Report, difference_of, milliseconds, same_answers
from ddp_ft.inference.evaluation_data import own_validation
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.trained_model import Trained, load_trained

# What a sample has for the task alone.
_LABELS = ("target", f"target{LENGTH}", "weight")
# How many texts are in the batches that are compared, in turn.
_SIZES = (1, 3, 8)


def compare_texts(original: Trained, aside: Path, device: torch.device, texts: tuple[Sequence[Batch], str]) -> Report:
    """Compare the export written to `aside` with its model, on batches of tokens and their origin."""
    batches, origin = texts
    export = replace(load_trained(aside, device), precision="fp32")
    scorers = [make_scorer(each, World(0, 1, 0, device)) for each in (original, export)]
    expected, found = (torch.cat([_rows(scorer.outputs(batch)) for batch in batches]) for scorer in scorers)
    predictions = ((scorer.predictions(_with_index(batch)) for batch in batches) for scorer in scorers)
    answers = [[each for some in found for each in original.task.answers(some)] for found in predictions]
    same, decided = same_answers(original.task, *answers)
    largest = max(batches, key=lambda batch: batch[TOKENS].shape[0])
    calls = [lambda scorer=scorer: scorer.outputs(largest) for scorer in scorers]
    return Report(
        sum(file.stat().st_size for file in (aside.iterdir() if aside.is_dir() else [aside])),
        len(answers[0]),
        origin,
        difference_of(expected, found),
        BOUND * max(1.0, float(expected.abs().max())),
        same,
        decided,
        milliseconds(calls, len(largest[TOKENS]), ROUNDS),
        "text",
    )


def _rows(outputs: Tensor) -> Tensor:
    """Of texts, or of all their tokens: N x outputs."""
    return outputs.flatten(0, -2)


def _with_index(batch: Batch) -> Batch:
    return {"index": batch[TOKENS][:, 0], **batch}


def text_processor(model: Trained) -> TextProcessor:
    """The model's processor, which is of texts."""
    assert isinstance(model.processor, TextProcessor)
    return model.processor


def texts_to_compare(model: Path, original: Trained, given: Path | None, count: int) -> tuple[list[Batch], str]:
    """Texts in batches of _SIZES, then one of as many tokens as the model takes, and one of hardly any; and their
    origin in words.

    From `given`, else from what that model's run is evaluated on, else noise. UserError if none of `given` is readable.
    """
    found, origin = _found(model, original, given, count)
    processor = text_processor(original)
    extremes = [_noise(processor, length) for length in (processor.length, min(3, processor.length))]
    noise = [_noise(processor, 4 + 5 * place % max(1, processor.length - 4)) for place in range(count)]
    transform, samples = processor.eval_transform(), found or noise
    cut, place = [], 0
    while samples:
        size = _SIZES[place % len(_SIZES)]
        cut.append(transform.collate(samples[:size]))
        samples, place = samples[size:], place + 1
    return [*cut, *(transform.collate([each]) for each in extremes)], origin


def _found(model: Path, original: Trained, given: Path | None, count: int) -> tuple[list[Batch], str]:
    """Texts of what is given, else of what the run is evaluated on, as tokens; none if neither is there."""
    if given is not None:
        found = _spread(open_inputs("text", [str(given)]), count, original)
        if not found:
            raise UserError(f"--check-images {given}: none of its texts can be read.")
        return found, f"texts of {given}, the longest and the shortest possible"
    source = own_validation(model, original)
    if source is not None and (found := _spread(source, count, original)):
        return found, "texts that the run is evaluated on, the longest and the shortest possible"
    return [], "texts of random tokens, since the run's data is not here (--check-images DIR)"


def _spread(source: Source, count: int, original: Trained) -> list[Batch]:
    transform, found = original.processor.eval_transform(), []
    for place in range(min(count, len(source))):
        with suppress(BadSample):
            made: Mapping[str, Tensor] = transform(open_sample(source, place * len(source) // min(count, len(source))))
            found.append({name: made[name] for name in made if name not in _LABELS})
    return found


def _noise(processor: TextProcessor, length: int) -> Batch:
    """A text of random tokens, always the same."""
    words = tokenizer_of(processor.tokenizer, processor.length).words
    tokens = torch.randint(words, (length,), generator=torch.Generator("cpu").manual_seed(length))
    named = {TOKENS: tokens, **({PLACES: torch.arange(length)} if processor.of_words else {})}
    return named | {f"{name}{LENGTH}": torch.tensor(length) for name in named}
