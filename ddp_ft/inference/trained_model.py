"""A trained model, ready to be evaluated or to predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.contracts import NO_VIEWS, Call, Processor, Task, Views
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.processors import processor_from
from ddp_ft.errors import UserError, printable, reason_of, typed_line
from ddp_ft.inference.exported import Framed, call_of_exported, is_exported, kept_inside, open_exported
from ddp_ft.inference.restored_module import restored_module
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.models.libraries.registry import call_of
from ddp_ft.models.precision import is_convolutional, place, same_precision
from ddp_ft.run_folder.contents import PURPOSES
from ddp_ft.run_folder.model_folder import VIEWS, files_in, kept_in, model_folder, read_description, read_weights
from ddp_ft.tasks.registry import restore_task


@dataclass(frozen=True)
class Trained:
    """The model of a run folder's best/ or of an exported file, on its device.

    With `views` it averages over several views of an image; its `processor` then makes the image they are cut from.
    `own_views` names those that its run chose (eval.tta).
    """

    module: nn.Module
    processor: Processor
    call: Call
    task: Task
    names: tuple[str, ...]
    precision: str
    channels_last: bool
    views: Views | None = None
    own_views: str = NO_VIEWS


def load_trained(path: Path, device: torch.device) -> Trained:
    """The model of a run folder, a model folder or an exported file, in evaluation mode.

    UserError if it is not there or does not fit.
    """
    if is_exported(path):
        return _load_exported(path, device)
    folder = model_folder(path)
    try:
        description = read_description(folder)
        weights = read_weights(folder / "model.safetensors")
        processor = processor_from(description["preprocessing"], kept_in(folder))
        task_name, settings = description["task"], description["task_settings"]
        names, precision = tuple(map(str, description["classes"])), description["precision"]
        refuse_code_inside(folder, _code_of(description))
    except UserError:
        raise
    except Exception as error:
        reason = f"model.json has no {error}" if isinstance(error, KeyError) else reason_of(error)
        hint = "" if isinstance(error, PermissionError) else PURPOSES["model.json"][1]
        raise UserError(f"The model in {folder} cannot be read: {reason}.", hint) from None
    module = restored_module(description, weights)
    channels_last = bool(description.get("channels_last", is_convolutional(module)))
    return Trained(
        place(module.eval(), device, channels_last),
        processor,
        call_of(description["library"], len(names)),
        restore_task(task_name, settings),
        names,
        same_precision(precision, device),
        channels_last,
        own_views=str(description.get(VIEWS, NO_VIEWS)),
    )


def files_of(path: Path) -> list[Path]:
    """The files that `load_trained` may read. UserError if there is no model."""
    return [path] if is_exported(path) else files_in(model_folder(path))


def _load_exported(path: Path, device: torch.device) -> Trained:
    module, description = open_exported(path, device)
    try:
        processor = processor_from(description["preprocessing"], kept_inside(description))
        task = restore_task(description["task"], description["task_settings"])
        names = tuple(map(str, description["classes"]))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The description in {path} is not as expected: {typed_line(error)}.") from None
    channels_last = bool(description.get("channels_last"))
    if not description.get("takes_pictures"):
        own_views = str(description.get(VIEWS, NO_VIEWS))
        trained = Trained(module.eval(), processor, call_of_exported(description), task, names, "fp32", channels_last)
        return replace(trained, own_views=own_views)
    # It normalises by itself: values stay in 0..255.
    assert isinstance(processor, ImageProcessor), "only images are prepared inside a file"
    preprocess, channels = processor.preprocess, processor.preprocess.channels
    plain = ImageProcessor(replace(preprocess, mean=(0.0,) * channels, std=(1 / 255,) * channels))
    return Trained(Framed(module, preprocess).eval(), plain, call_with_images, task, names, "fp32", False)


def _code_of(description: Mapping[str, Any]) -> list[Any]:
    """The names in model.json that may refer to code: those of the model, its head, the loss and the metric."""
    settings = description["task_settings"]
    parts = [description.get("head"), settings.get("loss")]
    named = [part.get("name") for part in parts if isinstance(part, Mapping)]
    return [description.get("name"), settings.get("extra"), *named]


def refuse_code_inside(folder: Path, references: Sequence[Any]) -> None:
    """UserError for a FILE.py:NAME within the run folder that names it.

    A run folder is data: whoever predicts with one from others does not expect it to run code. Files elsewhere are the
    user's own.
    """
    run = (folder.parent if folder.name == "best" else folder).resolve()
    for reference in references:
        file = Path(str(reference).rpartition(":")[0])
        if file.suffix == ".py" and file.resolve().is_relative_to(run):
            raise UserError(
                f"{folder} names code that lies inside it, {printable(str(file))}, which is not run.",
                "If you trust it, move that file out of the folder and name it there.",
            )
