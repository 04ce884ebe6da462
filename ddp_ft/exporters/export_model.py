"""A trained model as a file for other programs, compared with the original before it gets its name."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError, typed_line
from ddp_ft.exporters.compare import Report
from ddp_ft.exporters.onnx import check_installed
from ddp_ft.exporters.pair import load_pair
from ddp_ft.exporters.request import ONNX_FORMAT, SAFETENSORS, SUFFIXES, WEIGHTS, ExportRequest
from ddp_ft.exporters.safetensors import CONFIG, README
from ddp_ft.files import replace_folder
from ddp_ft.inference.exported import is_exported
from ddp_ft.inference.trained_model import Trained

# What writes and compares models of a kind of input: (ExportRequest, Pair, where to write, device) to a Report. A
# further kind is a line here.
EXPORTERS = {
    "image": "ddp_ft.exporters.image_model:export_images",
    "text": "ddp_ft.exporters.text_model:export_texts",
}
# Of an exported folder, which may be replaced.
_FILES = {"model.safetensors", "model.json", CONFIG, README, "tokenizer.json", "tokenizer_config.json"}


def export_model(request: ExportRequest, launch: Launch) -> Report:
    """Write the export aside, compare it with the original, and rename it to the output if it is good; else remove it.

    Raises UserError for a model or request that cannot be exported.
    """
    _check(request, launch)
    device = pick_device(request.device, launch)
    pair = load_pair(request, device)
    write_and_compare = _exporter_of(pair.original)
    aside = request.output.with_name(f".writing_{request.output.name}")
    _remove(aside)
    try:
        report = _tried(lambda: write_and_compare(request, pair, aside, device), request.format)
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
    output, suffix = request.output, SUFFIXES[request.format]
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


def _exporter_of(original: Trained) -> Callable[..., Report]:
    module, _, name = EXPORTERS.get(original.processor.kind, "").partition(":")
    if not module:
        raise UserError(f"Models of the kind '{original.processor.kind}' cannot be exported.", "Use best/ as it is.")
    return cast(Callable[..., Report], getattr(import_module(module), name))


def _tried(work: Callable[[], Report], format: str) -> Report:
    try:
        return work()
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(
            f"This model cannot be exported as {format}: {typed_line(error)}.",
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
