"""A trained model as a file for other programs, compared with the original before it gets its name."""

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddp_ft.data.image.processor import preprocess_of
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError, typed_line
from ddp_ft.exporters.compare import Report, compare, images_to_compare
from ddp_ft.exporters.onnx import check_installed, check_preprocessing, outputs_alone, quiet, trace, write_onnx
from ddp_ft.exporters.safetensors import CONFIG, README, check_buildable, write_folder
from ddp_ft.files import replace_folder, write_bytes
from ddp_ft.inference.adapted_model import load_adapted
from ddp_ft.inference.exported import DESCRIPTION, ONNX, PT2, describe_exported, is_exported
from ddp_ft.inference.trained_model import Trained, load_trained
from ddp_ft.run_folder.model_folder import ADAPTER, model_folder, read_description, restore_weights

SAFETENSORS, ONNX_FORMAT, TORCH_EXPORT = FORMATS = ("safetensors", "onnx", "torch_export")
WEIGHTS = ".safetensors"
_FILES = {"model.safetensors", "model.json", CONFIG, README}  # of an exported folder, which may be replaced
_SUFFIXES = {SAFETENSORS: "", ONNX_FORMAT: ONNX, TORCH_EXPORT: PT2}


@dataclass(frozen=True)
class ExportRequest:
    """What to export; `count` images are compared, of `images` if that is given. `merge`: an adapter is merged into the
    weights that it is on anew, and what is compared is the network with both apart."""

    model: Path
    format: str
    output: Path
    device: str = "cpu"
    with_preprocessing: bool = False
    count: int = 32
    images: Path | None = None
    merge: bool = False


def export_model(request: ExportRequest, launch: Launch) -> Report:
    """Write the export aside, compare it with the original, and rename it to the output if it is good; else remove it.

    Raises UserError for a model or request that cannot be exported.
    """
    _check(request, launch)
    device = pick_device(request.device, launch)
    original, model = _loaded(request, device)
    preprocess = preprocess_of(original.processor)
    if request.with_preprocessing:
        check_preprocessing(preprocess)
    aside = request.output.with_name(f".writing_{request.output.name}")
    _remove(aside)
    try:
        _write(request, aside, model)
        images, origin = images_to_compare(request.model, original, request.images, request.count)
        report = compare(original, aside, device, images, origin)
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
        raise UserError("--with-preprocessing is for --format onnx.", "Other formats only describe the preprocessing.")
    if request.format == ONNX_FORMAT:
        check_installed()


def _check_output(request: ExportRequest) -> None:
    output, suffix = request.output, _SUFFIXES[request.format]
    is_weights = request.format == SAFETENSORS and output.suffix.lower() == WEIGHTS
    if output.suffix.lower() != suffix and not is_weights and (suffix or is_exported(output)):
        expected = f"a name that ends in {suffix}" if suffix else f"the name of a folder, or one that ends in {WEIGHTS}"
        raise UserError(f"--output {output} does not fit --format {request.format}.", f"Expected {expected}.")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.absolute().parent}.")
    if output.is_dir() and (suffix or is_weights or not {each.name for each in output.iterdir()} <= _FILES):
        raise UserError(f"--output {output} is a folder with other things in it.", "Choose a new name.")
    if output.is_file() and not suffix and not is_weights:
        raise UserError(f"--output {output} is a file.", "Choose the name of a new folder.")
    if is_weights and output.with_suffix(".json").exists() and not output.exists():
        raise UserError(
            f"{output.with_suffix('.json')} is there, where the configuration would be.", "Choose a new name."
        )


def _loaded(request: ExportRequest, device: torch.device) -> tuple[Trained, Trained]:
    """The original, and the model to write: loaded anew, since the formats need the plain memory layout."""
    original, model = (replace(load_trained(request.model, device), precision="fp32") for _ in range(2))
    if request.merge:
        adapted, weights = load_adapted(request.model, device)
        original = replace(adapted, precision="fp32")
        restore_weights(model.module, weights)
    return original, model


def _write(request: ExportRequest, aside: Path, model: Trained) -> None:
    stored = read_description(model_folder(request.model))
    description = {name: value for name, value in stored.items() if name != ADAPTER}
    module, preprocess = model.module.to(memory_format=torch.contiguous_format), preprocess_of(model.processor)
    device = next(module.parameters()).device
    if request.format == SAFETENSORS:
        check_buildable(description)
        write_folder(aside, module, description, preprocess, model.names)
        return
    described = describe_exported(description, request.with_preprocessing)
    try:
        program = trace(outputs_alone(module, model.call, len(model.names), preprocess), preprocess, device)
        if request.format == ONNX_FORMAT:
            write_onnx(program, aside, described, preprocess if request.with_preprocessing else None)
        else:
            with quiet():
                extra = {DESCRIPTION: json.dumps({**described, "channels_last": model.channels_last})}
                content = io.BytesIO()  # given a path, torch aborts the process where the disk is full
                torch.export.save(program, content, extra_files=extra)
            write_bytes(aside, content.getvalue(), durable=False)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(
            f"This model cannot be exported as {request.format}: {typed_line(error)}.",
            "torch.export traces a model's operations; code that decides by the values of tensors stops it. "
            "--format safetensors writes the weights without tracing.",
        ) from None


def _put(aside: Path, output: Path) -> None:
    if aside.is_dir() and output.suffix.lower() == WEIGHTS:
        # The configuration first: others wait for the weights.
        config = next(each for each in (aside / CONFIG, aside / "model.json") if each.exists())
        config.replace(output.with_suffix(".json"))
        (aside / "model.safetensors").replace(output)
    elif aside.is_dir():
        replace_folder(output, aside, durable=False)
    else:
        aside.replace(output)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
