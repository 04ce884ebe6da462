"""An export beside the original: the largest difference of an output, the answers, the time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ddp_ft.contracts import BadSample, Source, Task
from ddp_ft.data.image.undecoded import Image, whole
from ddp_ft.data.open_sample import open_sample
from ddp_ft.data.sources.folder import FileSource
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.inference.evaluation_data import own_validation
from ddp_ft.inference.exported import Framed
from ddp_ft.inference.scoring import make_scorer
from ddp_ft.inference.trained_model import Trained, load_trained

# The largest difference of an output that an export may have, as a share of the largest output (or of 1). Other
# kernels sum in another order: 1e-6 is usual. With the preprocessing inside pixels differ by a grey level here and
# there, and images that are otherwise shrunk while they are decoded by more.
BOUND, BOUND_WITH_PREPROCESSING = 1e-3, 0.05
# Where the original is as near as that to another decision, either answer is as good.
UNDECIDED = 0.02
BATCH = 8  # images of a pass that is timed
ROUNDS = 5


@dataclass(frozen=True)
class Report:
    """How the export compares with the original: largest difference of an output and what was allowed, images with
    the same answer, milliseconds for an image, of the original and of the export."""

    size: int
    images: int
    origin: str
    difference: float
    allowed: float
    same: int
    decided: int
    times: tuple[float, float]

    @property
    def is_good(self) -> bool:
        """Whether the export may stay."""
        return self.difference <= self.allowed and self.same >= self.decided

    def lines(self) -> list[tuple[str, str]]:
        """What to print."""
        undecided = self.images - self.decided
        answers = f"{self.same} of {self.images} the same"
        answers += f" ({undecided} where the model itself is undecided)" if undecided else ""
        ours, theirs = self.times
        return [
            ("size", f"{self.size / 1e6:.2f} MB"),
            ("compared on", f"{self.images} {self.origin}"),
            ("difference", f"{self.difference:.2g} at most in an output (allowed: {self.allowed:.2g})"),
            ("answers", answers),
            ("time", f"{ours:.2f} ms an image by the original, {theirs:.2f} ms by the export"),
        ]


def compare(original: Trained, aside: Path, device: torch.device, images: Sequence[Image], origin: str) -> Report:
    """The export that was written to `aside` beside the model it was made from, on images of that origin."""
    world = World(0, 1, 0, device)
    export = load_trained(aside, device)
    runs = [_outputs_of(original, world, original), _outputs_of(export, world, original)]
    wanted, found = (run(images) for run in runs)
    same, decided = _answers(original.task, wanted, found)
    share = BOUND_WITH_PREPROCESSING if isinstance(export.module, Framed) else BOUND
    difference = (wanted - found).abs().max()
    return Report(
        _size_of(aside),
        len(images),
        origin,
        float(difference) if bool(torch.isfinite(found).all()) else float("inf"),
        share * max(1.0, float(wanted.abs().max())),
        same,
        decided,
        _milliseconds(_calls(original, export, world, images[:BATCH]), min(len(images), BATCH)),
    )


def _calls(
    original: Trained, export: Trained, world: World, images: Sequence[Image]
) -> tuple[Callable[[], object], ...]:
    """What is timed: one batch of prepared images; or, if the export prepares them, pixels, one after the other."""
    pixels = [whole(each) for each in images]
    models = (original, export)
    if isinstance(export.module, Framed):
        runs = [_outputs_of(model, world, original) for model in models]
        return tuple(partial(_one_by_one, run, pixels) for run in runs)
    transform = original.processor.eval_transform()
    batch = transform.collate([transform({"image": each}) for each in pixels])
    return tuple(partial(make_scorer(model, world).outputs, batch) for model in models)


def _one_by_one(run: Callable[[Sequence[Image]], Tensor], images: Sequence[Image]) -> None:
    for each in images:
        run([each])


def _outputs_of(model: Trained, world: World, original: Trained) -> Callable[[Sequence[Image]], Tensor]:
    """What gives the outputs for decoded images: in batches of BATCH, or one after the other if it takes them raw."""
    if isinstance(model.module, Framed):
        inner = model.module.inner
        return lambda images: torch.cat([inner(whole(each)[None].float()) for each in images])
    scorer, transform = make_scorer(model, world), original.processor.eval_transform()

    def outputs(images: Sequence[Image]) -> Tensor:
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        batches = (transform.collate([transform({"image": each}) for each in part]) for part in parts)
        return torch.cat([scorer.outputs(batch) for batch in batches])

    return outputs


def _answers(task: Task, wanted: Tensor, found: Tensor) -> tuple[int, int]:
    """On how many images both say the same, and on how many the first is sure of what it says."""
    decided = [[task.decision(each) for each in task.answers(task.predictions(some, {}))] for some in (wanted, found)]
    same = [first == second for (first, _), (second, _) in zip(*decided, strict=True)]
    sure = [agrees or not margin < UNDECIDED for agrees, (_, margin) in zip(same, decided[0], strict=True)]
    return sum(same), sum(sure)


def _milliseconds(calls: Sequence[Callable[[], object]], images: int) -> tuple[float, float]:
    """For an image, of two calls in turn: medians of ROUNDS."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    ours, theirs = (1000 * median(times) / images for times in taken)
    return ours, theirs


def images_to_compare(model: Path, original: Trained, given: Path | None, count: int) -> tuple[list[Image], str]:
    """Readable images, spread over the set they are from, and what they are.

    Of `given`, else of what that model's run is evaluated on, else noise. UserError if none of `given` is readable.
    """
    if given is not None:
        source: Source | None = FileSource(list_images([str(given)]))
        origin = f"images of {given}"
    else:
        source, origin = own_validation(model, original), "images that the run is evaluated on"
    found = _spread(source, count) if source is not None else []
    if given is not None and not found:
        raise UserError(f"--check-images {given}: none of its images can be read.")
    if found:
        return found, origin
    return _noise(original, count), "images of noise, since the run's data is not here (--check-images DIR)"


def _spread(source: Source, count: int) -> list[Image]:
    found: list[Image] = []
    for place in range(min(count, len(source))):
        index = place * len(source) // min(count, len(source))
        try:
            image = open_sample(source, index)["image"]
            whole(image)
        except BadSample:
            continue
        found.append(image)
    return found


def _noise(original: Trained, count: int) -> list[Image]:
    """Always the same: coarse noise, so that something is left of it when it is resized."""
    generator = torch.Generator().manual_seed(0)
    height, width = (2 * side for side in original.processor.shape())
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return list((255 * smooth).to(torch.uint8))


def _size_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
