"""Files of `ddp-ft export`, opened by onnxruntime or torch.export, and the description in them."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.contracts import Call, Kept, nothing_kept
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError, one_line
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.models.libraries.transformers import call_with_inputs

ONNX, PT2 = SUFFIXES = (".onnx", ".pt2")
# The one file beside the program in a .pt2.
DESCRIPTION = "model.json"
# Names of the input and the output of an ONNX file: normalised images, float32 B x C x H x W, or with the
# preprocessing inside images of any size, uint8 B x H x W x C; the task's outputs, float32 B x outputs.
IMAGES, RAW_IMAGES, OUTPUTS = "images", "pictures", "outputs"
# Settings of a task that an exported file lacks: the loss and the metric may be the user's own code, which predictions
# do not need.
_TRAINING_ONLY = ("loss", "extra")
_DESCRIBED = ("task", "classes", "preprocessing")
_EXPECTED = "Expected a file that ddp-ft export wrote."


class ExportedModule(nn.Module):
    """A program from a file in place of the model: float32 B x C x H x W, or tokens and their masks, to float32 B x
    outputs.

    The program is no submodule: it has no training mode.
    """

    def __init__(self, program: Callable[..., Tensor]) -> None:
        super().__init__()
        self.program = (program,)  # in a tuple, or torch would take it for a submodule

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the class says."""
        return self.program[0](*inputs)


class Framed(nn.Module):
    """Adapter for ONNX files with built-in preprocessing: float32 B x C x H x W of 0..255 to float32 B x outputs.

    It pads the already cropped batch so that the file's own resize is the identity and its centre crop returns the
    batch.
    """

    def __init__(self, inner: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.inner = inner
        down, across = (math.floor(pixels / preprocess.crop_pct) - pixels for pixels in preprocess.size)
        before = (round(across / 2), round(down / 2))  # as the file's own crop is rounded
        self.frame = (before[0], across - before[0], before[1], down - before[1])

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        outputs: Tensor = self.inner(nn.functional.pad(images, self.frame))
        return outputs


def is_exported(path: Path) -> bool:
    """Whether the path names such a file, existing or not."""
    return path.suffix.lower() in SUFFIXES


def describe_exported(description: Mapping[str, Any], takes_pictures: bool) -> dict[str, Any]:
    """The description in an exported file, from model.json; `takes_pictures`: the preprocessing is inside."""
    kept = {name: description[name] for name in _DESCRIBED}
    return {**kept, "task_settings": _for_prediction(description["task_settings"]), "takes_pictures": takes_pictures}


def _for_prediction(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _TRAINING_ONLY}


def open_exported(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The module and its description. UserError for a file that is missing, damaged or not written by export."""
    if not path.is_file():
        raise UserError(f"{path} is not there.", "Expected a run folder, a model folder, or an exported file.")
    open_it = _open_onnx if path.suffix.lower() == ONNX else _open_pt2
    try:
        module, description = open_it(path, device)
    except UserError:
        raise
    except Exception as error:  # each library has many kinds of its own
        hint = "It may be cut short: copy it again, or export it anew."
        raise UserError(f"{path} cannot be read: {one_line(error)}.", hint) from None
    missing = [name for name in (*_DESCRIBED, "task_settings") if name not in description]
    if missing:
        raise UserError(f"{path} lacks the description of its outputs: {', '.join(missing)}.", _EXPECTED)
    return module, {**description, "task_settings": _for_prediction(description["task_settings"])}


def kept_inside(description: Mapping[str, Any]) -> Kept:
    """The files of the processor that are inside an exported file."""

    def kept(name: str) -> bytes:
        files = description.get("files", {})
        return str(files[name]).encode() if name in files else nothing_kept(name)

    return kept


def call_of_exported(description: Mapping[str, Any]) -> Call:
    """How an exported program is called: with its named inputs, or with images."""
    return call_with_inputs(description["inputs"]) if "inputs" in description else call_with_images


def _open_onnx(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[export]'."
        raise UserError(f"Running {path} needs onnxruntime, which is not installed.", hint) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # else each of several ranks would take all cores
    options.log_severity_level = 3
    requested = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    there = onnxruntime.get_available_providers()
    providers = [each for each in [*requested, "CPUExecutionProvider"] if each in there]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        if names == [RAW_IMAGES]:  # they are still in 0..255
            inputs = (inputs[0].round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1),)
        given = (each.contiguous().cpu().numpy() for each in inputs)
        outputs = session.run(None, dict(zip(names, given, strict=True)))[0]
        return torch.from_numpy(outputs).to(inputs[0].device)

    texts = session.get_modelmeta().custom_metadata_map
    return ExportedModule(run), {key: json.loads(text) for key, text in texts.items()}


def _open_pt2(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    extra = {DESCRIPTION: ""}
    _refuse_foreign_code(path)
    program = torch.export.load(path, extra_files=extra)
    description = json.loads(extra[DESCRIPTION] or "{}")
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))
    module = program.module()
    if description.get("channels_last"):
        module = module.to(memory_format=torch.channels_last)
    return ExportedModule(module), description


def _refuse_foreign_code(path: Path) -> None:
    """UserError for a .pt2 with objects that only pickle opens, or with machine code: it could run anything.

    torch opens both without a question; what export writes is tensors and JSON.
    """
    with zipfile.ZipFile(path) as archive:
        foreign = next((name for name in archive.namelist() if _is_foreign(name, archive)), None)
    if foreign is not None:
        raise UserError(
            f"{path} holds more than tensors ({foreign}) and is not opened: it could run foreign code.", _EXPECTED
        )


def _is_foreign(name: str, archive: zipfile.ZipFile) -> bool:
    parts = name.split("/")
    if parts[-1].startswith(("custom_obj_", "opaque_obj_")) or "aotinductor" in parts:
        return True
    if name.endswith("_config.json"):
        config = json.loads(archive.read(name))
        entries = config.get("config", {}).values() if isinstance(config, dict) else []
        return any(entry.get("use_pickle") for entry in entries)
    if name.endswith(".pt") and (content := archive.read(name)):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception:
            return True
    return False
