"""A trained model as a file for other programs, compared with the original before it gets its name."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import BadSample, Source, Task
from ddp_ft.data.image.picture import Image, whole
from ddp_ft.data.image.sample import open_sample
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.sources.folder import FileSource
from ddp_ft.data.sources.predict_inputs import list_pictures
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.exporters.onnx import check_installed, check_preprocessing, quiet, trace, write_onnx
from ddp_ft.exporters.safetensors import CONFIG, check_buildable, write_folder
from ddp_ft.inference.evaluation_data import own_validation
from ddp_ft.inference.exported import DESCRIPTION, ONNX, PT2, Framed, describe_exported, is_exported
from ddp_ft.inference.trained_model import Trained, load_trained, make_scorer
from ddp_ft.run_folder.model_folder import model_folder, read_description

SAFETENSORS, ONNX_FORMAT, TORCH_EXPORT = FORMATS = ("safetensors", "onnx", "torch_export")
WEIGHTS = ".safetensors"
_SUFFIXES = {SAFETENSORS: "", ONNX_FORMAT: ONNX, TORCH_EXPORT: PT2}

# The largest difference of an output that an export may have, as a share of the largest output (or of 1). Other
# kernels sum in another order: 1e-6 is usual. With the preprocessing inside pixels differ by a grey level here and
# there, and pictures that are otherwise shrunk while they are decoded by more.
BOUND, BOUND_WITH_PREPROCESSING = 1e-3, 0.05
# Where the original's own probabilities are as near as that, either answer is as good.
UNDECIDED = 0.02
BATCH = 8  # pictures of a pass that is timed
ROUNDS = 5


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for; `count` pictures are compared, of `pictures` where that is given."""

    model: Path
    format: str
    output: Path
    device: str = "cpu"
    with_preprocessing: bool = False
    count: int = 32
    pictures: Path | None = None


@dataclass(frozen=True)
class Report:
    """How the export compares with the original: largest difference of an output and what was allowed, pictures with
    the same answer, milliseconds for a picture, of the original and of the export."""

    size: int
    pictures: int
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
        undecided = self.pictures - self.decided
        answers = f"{self.same} of {self.pictures} the same"
        answers += f" ({undecided} where the model itself is undecided)" if undecided else ""
        ours, theirs = self.times
        return [
            ("size", f"{self.size / 1e6:.2f} MB"),
            ("compared on", f"{self.pictures} {self.origin}"),
            ("difference", f"{self.difference:.2g} at most in an output (allowed: {self.allowed:.2g})"),
            ("answers", answers),
            ("time", f"{ours:.2f} ms a picture by the original, {theirs:.2f} ms by the export"),
        ]


def export_model(request: ExportRequest, launch: Launch) -> Report:
    """Write the export aside, compare it with the original, and give it its name if it is good; else remove it.

    Raises UserError for what cannot be exported.
    """
    _check(request, launch)
    device = pick_device(request.device, launch)
    original = replace(load_trained(request.model, device), precision="fp32")
    if request.with_preprocessing:
        check_preprocessing(original.preprocess)
    aside = request.output.with_name(f".writing_{request.output.name}")
    _remove(aside)
    try:
        _write(request, aside, device)
        report = _compare(request, original, aside, device)
        if report.is_good:
            _put(aside, request.output)
        return report
    finally:
        _remove(aside)


def _check(request: ExportRequest, launch: Launch) -> None:
    if launch.distributed:
        raise UserError("Exporting is done by one process.", "Start it without torchrun.")
    if is_exported(request.model):
        raise UserError(f"{request.model} is an exported file itself.", "Give the run folder that it was made from.")
    _check_output(request)
    if request.with_preprocessing and request.format != ONNX_FORMAT:
        raise UserError("--with-preprocessing is for --format onnx.", "The others say what to do to pictures.")
    if request.format == ONNX_FORMAT:
        check_installed()


def _check_output(request: ExportRequest) -> None:
    output, suffix = request.output, _SUFFIXES[request.format]
    is_weights = request.format == SAFETENSORS and output.suffix.lower() == WEIGHTS
    if output.suffix.lower() != suffix and not is_weights and (suffix or is_exported(output)):
        wanted = f"a name that ends in {suffix}" if suffix else f"the name of a folder, or one that ends in {WEIGHTS}"
        raise UserError(f"--output {output} does not fit --format {request.format}.", f"Expected {wanted}.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}.")
    if output.is_dir() and (suffix or is_weights or not _may_be_replaced(output)):
        raise UserError(f"--output {output} is a folder with other things in it.", "Choose a new name.")
    if output.is_file() and not suffix and not is_weights:
        raise UserError(f"--output {output} is a file.", "Choose the name of a new folder.")
    if is_weights and output.with_suffix(".json").exists() and not output.exists():
        raise UserError(
            f"{output.with_suffix('.json')} is there, where the configuration would be.", "Choose a new name."
        )


def _may_be_replaced(folder: Path) -> bool:
    names = {each.name for each in folder.iterdir()}
    return not names or names <= {"model.safetensors", "model.json", "config.json", "README.md"}


def _write(request: ExportRequest, aside: Path, device: torch.device) -> None:
    description = read_description(model_folder(request.model))
    # Loaded anew, as the other formats want it: plain memory layout.
    model = load_trained(request.model, device)
    module = model.module.to(memory_format=torch.contiguous_format)
    if request.format == SAFETENSORS:
        check_buildable(description)
        write_folder(aside, module, description, model.preprocess, model.names)
        return
    told = describe_exported(description, request.with_preprocessing)
    preprocess = model.preprocess if request.with_preprocessing else None
    try:
        program = trace(module, model.preprocess, device)
        if request.format == ONNX_FORMAT:
            write_onnx(program, aside, told, preprocess)
        else:
            with quiet():
                extra = {DESCRIPTION: json.dumps({**told, "channels_last": model.channels_last})}
                torch.export.save(program, aside, extra_files=extra)
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"This model cannot be exported as {request.format}: {type(error).__name__}: {reason}",
            "torch.export follows a model through all that it computes; code that decides by the values of tensors "
            "stops it. --format safetensors has the weights as they are.",
        ) from None


def _compare(request: ExportRequest, original: Trained, aside: Path, device: torch.device) -> Report:
    world = World(0, 1, 0, device)
    export = load_trained(aside, device)
    pictures, origin = _pictures(request, original)
    runs = [_outputs_of(original, world, original), _outputs_of(export, world, original)]
    wanted, found = (run(pictures) for run in runs)
    same, decided = _answers(original.task, wanted, found)
    share = BOUND_WITH_PREPROCESSING if isinstance(export.module, Framed) else BOUND
    difference = (wanted - found).abs().max()
    return Report(
        _size_of(aside),
        len(pictures),
        origin,
        float(difference) if bool(torch.isfinite(found).all()) else float("inf"),
        share * max(1.0, float(wanted.abs().max())),
        same,
        decided,
        _milliseconds(_calls(original, export, world, pictures[:BATCH]), min(len(pictures), BATCH)),
    )


def _calls(
    original: Trained, export: Trained, world: World, pictures: Sequence[Image]
) -> tuple[Callable[[], object], ...]:
    """What is timed: one batch of prepared pictures; or, if the export prepares them, pixels, one after the other."""
    pixels = [whole(each) for each in pictures]
    models = (original, export)
    if isinstance(export.module, Framed):
        runs = [_outputs_of(model, world, original) for model in models]
        return tuple(partial(_one_by_one, run, pixels) for run in runs)
    transform = eval_transform(original.preprocess)
    batch = {"image": torch.stack([transform(each) for each in pixels]), "index": torch.arange(len(pixels))}
    return tuple(partial(make_scorer(model, world).outputs, batch) for model in models)


def _one_by_one(run: Callable[[Sequence[Image]], Tensor], pictures: Sequence[Image]) -> None:
    for each in pictures:
        run([each])


def _outputs_of(model: Trained, world: World, original: Trained) -> Callable[[Sequence[Image]], Tensor]:
    """What gives the outputs for decoded pictures: in batches of BATCH, or one after the other if it takes them raw."""
    if isinstance(model.module, Framed):
        inner = model.module.inner
        return lambda pictures: torch.cat([inner(whole(each)[None].float()) for each in pictures])
    scorer, transform = make_scorer(model, world), eval_transform(original.preprocess)

    def outputs(pictures: Sequence[Image]) -> Tensor:
        parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        prepared = (torch.stack([transform(each) for each in part]) for part in parts)
        return torch.cat([scorer.outputs({"image": each, "index": torch.arange(len(each))}) for each in prepared])

    return outputs


def _answers(task: Task, wanted: Tensor, found: Tensor) -> tuple[int, int]:
    """On how many pictures both say the same, and on how many the first is sure of what it says."""
    records = [[task.record(row) for row in task.predictions(each).tolist()] for each in (wanted, found)]
    told = [[record.get("class", record.get("classes")) for record in each] for each in records]
    same = [one == other for one, other in zip(*told, strict=True)]
    sure = [agrees or not _is_undecided(record) for agrees, record in zip(same, records[0], strict=True)]
    return sum(same), sum(sure)


def _is_undecided(record: dict[str, Any]) -> bool:
    probabilities = sorted(record.get("probabilities", {}).values(), reverse=True)
    if "class" in record:
        return bool(probabilities[0] - probabilities[1] < UNDECIDED)
    return any(abs(p - 0.5) < UNDECIDED / 2 for p in probabilities)


def _milliseconds(calls: Sequence[Callable[[], object]], pictures: int) -> tuple[float, float]:
    """For a picture, of two calls in turn: medians of ROUNDS."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    ours, theirs = (1000 * median(times) / pictures for times in taken)
    return ours, theirs


def _pictures(request: ExportRequest, original: Trained) -> tuple[list[Image], str]:
    """Readable pictures, spread over the set they are from, and what they are."""
    own = own_validation(request.model, original) if request.pictures is None else None
    if request.pictures is not None:
        source: Source | None = FileSource(list_pictures([str(request.pictures)]))
        origin = f"pictures of {request.pictures}"
    else:
        source, origin = own, "pictures that the run is evaluated on"
    found = _spread(source, request.count) if source is not None else []
    if request.pictures is not None and not found:
        raise UserError(f"--check-images {request.pictures}: none of its pictures can be read.")
    if found:
        return found, origin
    return _noise(original, request.count), "pictures of noise, since the run's data is not here (--check-images DIR)"


def _spread(source: Source, count: int) -> list[Image]:
    found: list[Image] = []
    for place in range(min(count, len(source))):
        index = place * len(source) // min(count, len(source))
        try:
            picture = open_sample(source, index).image
            whole(picture)
        except BadSample:
            continue
        found.append(picture)
    return found


def _noise(original: Trained, count: int) -> list[Image]:
    """Always the same: coarse noise, so that something is left of it when it is resized."""
    generator = torch.Generator().manual_seed(0)
    height, width = (2 * side for side in original.preprocess.size)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return list((255 * smooth).to(torch.uint8))


def _size_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _put(aside: Path, output: Path) -> None:
    if aside.is_dir() and output.suffix.lower() == WEIGHTS:
        # The configuration first: the weights are what others wait for.
        config = next(each for each in (aside / CONFIG, aside / "model.json") if each.exists())
        config.replace(output.with_suffix(".json"))
        (aside / "model.safetensors").replace(output)
    elif output.is_dir():
        old = output.with_name(f".old_{output.name}")
        _remove(old)
        output.rename(old)
        aside.rename(output)
        _remove(old)
    else:
        aside.replace(output)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
