"""An export compared with the original: the largest difference of an output, the answers, the time."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import BadSample, Batch, Source, Task
from ddp_ft.data.image.processor import preprocess_of
from ddp_ft.data.image.undecoded import Image, asked, whole
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.sources.files import FileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.inference.evaluation_data import own_validation
from ddp_ft.inference.exported import Framed
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.trained_model import Trained, load_trained

# As Task.answers returns them.
Answers = Sequence[Mapping[str, Any]]
# The largest difference of an output that an export may have, as a share of the largest output (or of 1). Other
# kernels sum in another order: 1e-6 is usual. With the preprocessing inside, some pixels differ by a grey level, and
# images that the loader shrinks while it decodes them by more.
BOUND, BOUND_WITH_PREPROCESSING = 1e-3, 0.05
# If the original is as near as that to another decision, either answer is as good.
UNDECIDED = 0.02
BATCH = 8  # images of a pass that is timed
ROUNDS = 5

# Computes something for decoded images of any size.
Run = Callable[[Sequence[Image]], Tensor]


@dataclass(frozen=True)
class Report:
    """How the export compares with the original on `images` samples.

    `difference` is the largest one of an output, `allowed` its bound. `same` ones have the same answer; `decided`
    ones have it too, or a clear one of the original. `times`: milliseconds a sample, of the original and of the export.
    """

    size: int
    images: int
    origin: str
    difference: float
    allowed: float
    same: int
    decided: int
    times: tuple[float, float]
    noun: str = "image"

    @property
    def is_good(self) -> bool:
        """Whether the export may be kept."""
        return self.difference <= self.allowed and self.same >= self.decided

    def lines(self) -> list[tuple[str, str]]:
        """Titles and values to print."""
        undecided = self.images - self.decided
        answers = f"{self.same} of {self.images} the same"
        answers += f" ({undecided} where the model itself is undecided)" if undecided else ""
        ours, theirs = self.times
        one = f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"
        return [
            ("size", f"{self.size / 1e6:.2f} MB"),
            ("compared on", f"{self.images} {self.origin}"),
            ("difference", f"{self.difference:.2g} at most in an output (allowed: {self.allowed:.2g})"),
            ("answers", answers),
            (
                "time",
                f"{ours:.2f} ms {one} by the original, {theirs:.2f} ms by the export",
            ),
        ]


def compare(original: Trained, aside: Path, device: torch.device, images: Sequence[Image], origin: str) -> Report:
    """Compare the export written to `aside` with its model, on decoded images of that origin."""
    world = World(0, 1, 0, device)
    export = replace(load_trained(aside, device), precision="fp32")
    expected, found = (_outputs_of(model, world, original)(images) for model in (original, export))
    task = original.task
    same, decided = same_answers(task, *(task.answers(task.predictions(each, {})) for each in (expected, found)))
    share = BOUND_WITH_PREPROCESSING if isinstance(export.module, Framed) else BOUND
    return Report(
        sum(file.stat().st_size for file in (aside.iterdir() if aside.is_dir() else [aside])),
        len(images),
        origin,
        difference_of(expected, found),
        share * max(1.0, float(expected.abs().max())),
        same,
        decided,
        milliseconds(_calls(original, export, world, images[:BATCH]), min(len(images), BATCH)),
    )


def _calls(original: Trained, export: Trained, world: World, images: Sequence[Image]) -> list[Callable[[], object]]:
    """What to time: one batch of prepared images; or, if the export prepares them, pixels, one after the other."""
    pixels = [_pixels(each, original) for each in images]
    models = (original, export)
    if isinstance(export.module, Framed):
        return [partial(_one_by_one, _outputs_of(model, world, original), pixels) for model in models]
    batch = _batch(pixels, original)
    return [partial(make_scorer(model, world).outputs, batch) for model in models]


def _one_by_one(run: Run, images: Sequence[Image]) -> None:
    for each in images:
        run([each])


def _outputs_of(model: Trained, world: World, original: Trained) -> Run:
    """Computes outputs for decoded images: in batches of BATCH, or one after the other if the model prepares them."""
    if isinstance(model.module, Framed):
        inner = model.module.inner
        return lambda images: torch.cat([inner(_pixels(each, original)[None].float()) for each in images])
    scorer = make_scorer(model, world)

    def outputs(images: Sequence[Image]) -> Tensor:
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return torch.cat([scorer.outputs(_batch(part, original)) for part in parts])

    return outputs


def _pixels(image: Image, original: Trained) -> Tensor:
    """uint8, C x H x W, with the model's number of channels."""
    return whole(image, preprocess_of(original.processor).channels)


def _batch(images: Sequence[Image], original: Trained) -> Batch:
    transform = original.processor.eval_transform()
    return transform.collate([transform({"image": each}) for each in images])


def same_answers(task: Task, expected: Answers, found: Answers) -> tuple[int, int]:
    """For how many samples both answers are the same, and for how many they are or have to be."""
    decided = [[task.decision(each) for each in answers] for answers in (expected, found)]
    same = [first == second for (first, _), (second, _) in zip(*decided, strict=True)]
    sure = [agrees or not margin < UNDECIDED for agrees, (_, margin) in zip(same, decided[0], strict=True)]
    return sum(same), sum(sure)


def difference_of(expected: Tensor, found: Tensor) -> float:
    """The largest difference of an output; infinite if one is not finite."""
    return float((expected - found).abs().max()) if bool(torch.isfinite(found).all()) else float("inf")


def milliseconds(calls: Sequence[Callable[[], object]], samples: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """For a sample, of two calls in turn: medians of so many rounds."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    ours, theirs = (1000 * median(times) / samples for times in taken)
    return ours, theirs


def images_to_compare(model: Path, original: Trained, given: Path | None, count: int) -> tuple[list[Image], str]:
    """Readable images, evenly spread over their set, and their origin in words.

    From `given`, else from what that model's run is evaluated on, else noise. UserError if none of `given` is readable.
    """
    if given is not None:
        found = _spread(FileSource(list_images([str(given)])), count, original)
        if not found:
            raise UserError(f"--check-images {given}: none of its images can be read.")
        return found, f"images of {given}"
    source = own_validation(model, original)
    if source is not None and (found := _spread(source, count, original)):
        return found, "images that the run is evaluated on"
    return _noise(original, count), "images of noise, since the run's data is not here (--check-images DIR)"


def _spread(source: Source, count: int, original: Trained) -> list[Image]:
    found: list[Image] = []
    preprocess = preprocess_of(original.processor)
    for place in range(min(count, len(source))):
        index = place * len(source) // min(count, len(source))
        with suppress(BadSample):
            image = asked(open_sample(source, index)["image"], preprocess.channels, preprocess.value_range)
            whole(image, preprocess.channels)
            found.append(image)
    return found


def _noise(original: Trained, count: int) -> list[Image]:
    """Always the same: coarse noise, so that some of it remains when it is resized."""
    generator = torch.Generator().manual_seed(0)
    height, width = (2 * side for side in original.processor.shape())
    coarse = torch.rand(count, preprocess_of(original.processor).channels, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return list((255 * smooth).to(torch.uint8))
