"""A trained model, ready to be evaluated or to predict."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import five_crop

from ddp_ft.contracts import Preprocess, Source, Task
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.loader import EvalLoader, default_workers
from ddp_ft.distributed.environment import Launch
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError, printable
from ddp_ft.evaluation.evaluator import EVAL_CHUNK, Scorer
from ddp_ft.inference.exported import Framed, is_exported, open_exported
from ddp_ft.models import create_from_spec
from ddp_ft.models.precision import is_convolutional, place, resolve_precision
from ddp_ft.run_folder.model_folder import restore_weights
from ddp_ft.tasks import restore_task

# Test-time augmentation: the picture as it is; with its mirror image; five crops of it, each with its mirror image.
NO_VIEWS, FLIP, CROPS = VIEWS = ("none", "flip", "crops")
# The five crops are taken from a picture at least that much wider: 256 for crops of 224 pixels (AlexNet's ten views).
CROPS_SHARE = 224 / 256


@dataclass(frozen=True)
class Trained:
    """What best/ of a run folder holds, or an exported file, built and on its device."""

    module: nn.Module
    preprocess: Preprocess
    task: Task
    names: tuple[str, ...]
    precision: str
    channels_last: bool


def describe_model(
    spec: Mapping[str, Any], preprocess: Preprocess, task: Task, names: Sequence[str], precision: str,
    channels_last: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """model.json: all that is needed to build the model again and to feed it; `names` are the outputs' own.

    Where `channels_last` is None, the rule of `resolve_format` holds.
    """
    return {
        **spec,
        "task": task.name,
        "classes": list(names),
        "task_settings": task.settings(),
        "preprocessing": preprocess.to_mapping(),
        "precision": precision,
        **({} if channels_last is None else {"channels_last": channels_last}),
    }


def model_folder(path: Path) -> Path:
    """The folder with model.json that a run folder, or its best/, stands for; UserError if there is none."""
    for folder in (path, path / "best"):
        if (folder / "model.json").is_file():
            return folder
    what = "has no best/model.json yet" if path.is_dir() else "is no model" if path.exists() else "is not there"
    hint = "Expected the run folder of a training run that was evaluated at least once, or an exported model."
    raise UserError(f"{path} {what}.", hint)


def load_trained(path: Path, device: torch.device) -> Trained:
    """The model of a run folder, a model folder or an exported file, in evaluation mode.

    UserError if it is not there or does not fit.
    """
    if is_exported(path):
        return _load_exported(path, device)
    folder = model_folder(path)
    try:
        description = read_description(folder)
        weights = load_file(folder / "model.safetensors")
        preprocess = Preprocess.from_mapping(description["preprocessing"])
        task_name, settings = description["task"], description["task_settings"]
        names, precision = tuple(map(str, description["classes"])), description["precision"]
        refuse_code_inside(folder, _code_of(description))
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"The model in {folder} cannot be read: model.json has no {error}.") from None
    except Exception as error:
        raise UserError(f"The model in {folder} cannot be read: {' '.join(str(error).split())}") from None
    module = create_from_spec(description)
    restore_weights(module, weights)
    channels_last = bool(description.get("channels_last", is_convolutional(module)))
    return Trained(
        place(module.eval(), device, channels_last),
        preprocess,
        restore_task(task_name, settings),
        names,
        _same_precision(precision, device),
        channels_last,
    )


def read_description(folder: Path) -> dict[str, Any]:
    """model.json of a model folder."""
    description: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return description


def _load_exported(path: Path, device: torch.device) -> Trained:
    module, description = open_exported(path, device)
    try:
        preprocess = Preprocess.from_mapping(description["preprocessing"])
        task = restore_task(description["task"], description["task_settings"])
        names = tuple(map(str, description["classes"]))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} does not describe itself as expected: {type(error).__name__}: {error}.") from None
    channels_last = bool(description.get("channels_last"))
    if not description.get("takes_pictures"):
        return Trained(module.eval(), preprocess, task, names, "fp32", channels_last)
    # It normalises by itself: values stay in 0..255.
    plain = replace(preprocess, mean=(0.0,) * len(preprocess.mean), std=(1 / 255,) * len(preprocess.std))
    return Trained(Framed(module, preprocess).eval(), plain, task, names, "fp32", False)


def make_scorer(trained: Trained, world: World) -> Scorer:
    """What gives the model's outputs for batches of `make_loader`."""
    prepare = DeviceTransform(trained.preprocess, world.device, trained.channels_last)
    return Scorer(trained.module, trained.task, prepare, world, trained.precision)


def make_loader(
    source: Source, trained: Trained, world: World, launch: Launch, only: Sequence[int] | None = None
) -> EvalLoader:
    """This rank's chunks of the source, or those of these numbers, prepared for the model."""
    workers = default_workers(world.device.type, launch.local_world_size)
    transform = eval_transform(trained.preprocess)
    pin_memory = world.device.type == "cuda"
    return EvalLoader(source, transform, EVAL_CHUNK, world.size, world.rank, workers, pin_memory, only)


def _code_of(description: Mapping[str, Any]) -> list[Any]:
    """What of model.json may point at code: the model, its head, the loss and the metric."""
    settings = description["task_settings"]
    parts = [description.get("head"), settings.get("loss")]
    named = [part.get("name") for part in parts if isinstance(part, Mapping)]
    return [description.get("name"), settings.get("extra"), *named]


def refuse_code_inside(folder: Path, references: Sequence[Any]) -> None:
    """UserError for a FILE.py:NAME within the run folder that names it.

    A run folder is data: whoever takes one over from others, and asks it for predictions, does not expect it to bring
    code along. Files elsewhere are the user's own.
    """
    run = (folder.parent if folder.name == "best" else folder).resolve()
    for reference in references:
        file = Path(str(reference).rpartition(":")[0])
        if file.suffix == ".py" and file.resolve().is_relative_to(run):
            raise UserError(
                f"{folder} names code that lies inside it, {printable(str(file))}, which is not run.",
                "If you trust it, move that file out of the folder and name it there.",
            )


def _same_precision(trained_in: str, device: torch.device) -> str:
    # Evaluated as it was trained where the device can, so that the numbers are those of the run.
    try:
        return resolve_precision(trained_in, device)
    except UserError:
        return "fp32"


def load_ensemble(paths: Sequence[Path], device: torch.device, views: str = NO_VIEWS) -> list[Trained]:
    """The models of several run folders. UserError, with all differences, unless all tell the same of a picture."""
    members = [with_views(load_trained(path, device), views) for path in paths]
    differences = [
        f"  {path}: {difference}"
        for path, member in zip(paths[1:], members[1:], strict=True)
        for difference in _differences(members[0], member)
    ]
    if differences:
        raise UserError(
            f"These models cannot be combined with {paths[0]}:\n" + "\n".join(differences),
            "Models of an ensemble have the same task and the same classes, in the same order.",
        )
    return members


def _differences(first: Trained, other: Trained) -> list[str]:
    if first.task.name != other.task.name:
        return [f"its task is {other.task.name}, not {first.task.name}"]
    more, fewer = (
        ", ".join(name for name in some.names if name not in others.names)
        for some, others in ((other, first), (first, other))
    )
    found = [f"it knows {more} in addition"] if more else []
    found += [f"it does not know {fewer}"] if fewer else []
    if not found and first.names != other.names:
        found = [f"it has the names in another order: {', '.join(other.names)}"]
    return found


def combine_members(members: Sequence[Trained], outputs: Sequence[Tensor]) -> Tensor:
    """The members' outputs (float32, B x outputs each) as one, in the terms of the first member's task."""
    if len(members) == 1:
        return outputs[0]
    task = members[0].task
    restated = [_restate(each, member.task, task) for member, each in zip(members, outputs, strict=True)]
    return task.combine(restated).float()


def _restate(outputs: Tensor, task: Task, other: Task) -> Tensor:
    """Outputs of one task as another one of the same name would put them.

    Regression standardises by its own training set: its predictions are a straight line of its outputs, which two
    points give. Tasks without settings of that kind predict the same from the same outputs, and nothing is done.
    """
    points = torch.stack([torch.zeros(other.outputs), torch.ones(other.outputs)])
    own, wanted = task.predictions(points), other.predictions(points)
    if torch.equal(own, wanted):
        return outputs
    return ((task.predictions(outputs) - wanted[0]) / (wanted[1] - wanted[0])).float()


class Views(nn.Module):
    """A model that looks at several views of each picture, one after the other, and combines what it finds.

    Called with normalised pictures, float B x C x H x W; for CROPS they are wider than `size`, (height, width), which
    the model is called with. Gives the task's combination of the views' outputs, float32.
    """

    def __init__(self, module: nn.Module, task: Task, views: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.module = module
        self.task = task
        self.views = views
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        # Models may count on the memory format that they are given in training.
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        crops = five_crop(images, list(self.size)) if self.views == CROPS else [images]
        views = [view for crop in crops for view in (crop, crop.flip(-1))]
        outputs = [self.module(view.contiguous(memory_format=memory_format)) for view in views]
        return self.task.combine([each.float() for each in outputs]).float()


def with_views(trained: Trained, views: str) -> Trained:
    """The model with test-time augmentation; `views` is one of VIEWS."""
    if views == NO_VIEWS:
        return trained
    if isinstance(trained.module, Framed):
        raise UserError(
            f"--tta {views} does not work with a file that has its preprocessing inside.",
            "Export it without --with-preprocessing, or use the run folder.",
        )
    size, preprocess = trained.preprocess.size, trained.preprocess
    if views == CROPS:
        share = min(preprocess.crop_pct, CROPS_SHARE)
        height, width = (math.floor(pixels / share) for pixels in size)
        preprocess = replace(preprocess, size=(height, width), crop_pct=1.0)
    module = Views(trained.module, trained.task, views, size).eval()
    return replace(trained, module=module, preprocess=preprocess)
