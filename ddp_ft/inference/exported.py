"""Files of `ddp-ft export`, opened again by onnxruntime or torch.export; and what they say of themselves."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError

ONNX, PT2 = SUFFIXES = (".onnx", ".pt2")
# The one file beside the program in a .pt2.
DESCRIPTION = "model.json"
# Names of the input and the output of an ONNX file: normalised images, float32 B x 3 x H x W, or with the
# preprocessing inside images of any size, uint8 B x H x W x 3; the task's outputs, float32 B x outputs.
IMAGES, RAW_IMAGES, OUTPUTS = "images", "pictures", "outputs"
# What of a task's settings an exported file has: the loss and the metric may be code of the user's own, which somebody
# who only wants predictions neither has nor needs.
_TRAINING_ONLY = ("loss", "extra")


class ExportedModule(nn.Module):
    """A program from a file that stands where the model stood: float32 B x 3 x H x W in, float32 B x outputs out.

    The program is no submodule: it knows no training mode.
    """

    def __init__(self, program: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.program = (program,)  # in a tuple, or torch would take it for a submodule

    def forward(self, images: Tensor) -> Tensor:
        """As the class says."""
        outputs: Tensor = self.program[0](images)
        return outputs


class Framed(nn.Module):
    """A module that resizes, crops and normalises by itself, called with images that are resized and cropped already.

    A batch needs images of one size, and so gets them from the loader (float32 B x 3 x H x W of 0..255). With a frame
    around them they are as large as what the module would resize them to, and its crop is what is inside the frame.
    """

    def __init__(self, inner: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.inner = inner
        down, across = (math.floor(pixels / preprocess.crop_pct) - pixels for pixels in preprocess.size)
        before = (round(across / 2), round(down / 2))  # as the file's own crop is rounded
        self.frame = (before[0], across - before[0], before[1], down - before[1])

    def forward(self, images: Tensor) -> Tensor:
        """As the class says; gives float32 B x outputs."""
        outputs: Tensor = self.inner(nn.functional.pad(images, self.frame))
        return outputs


def is_exported(path: Path) -> bool:
    """Whether the path names such a file, there or not."""
    return path.suffix.lower() in SUFFIXES


def describe_exported(description: Mapping[str, Any], takes_pictures: bool) -> dict[str, Any]:
    """What an exported file says of itself, from model.json; `takes_pictures`: the preprocessing is inside."""
    settings = {name: value for name, value in description["task_settings"].items() if name not in _TRAINING_ONLY}
    kept = {name: description[name] for name in ("task", "classes", "preprocessing")}
    return {**kept, "task_settings": settings, "takes_pictures": takes_pictures}


def open_exported(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The module and its description. UserError for what is not there, is damaged or was not written by export."""
    if not path.is_file():
        raise UserError(f"{path} is not there.", "Expected a run folder, a model folder, or an exported file.")
    opened = _open_onnx(path, device) if path.suffix.lower() == ONNX else _open_pt2(path, device)
    module, description = opened
    missing = [name for name in ("task", "classes", "preprocessing", "task_settings") if name not in description]
    if missing:
        raise UserError(
            f"{path} does not say what its outputs mean: it lacks {', '.join(missing)}.",
            "Expected a file that ddp-ft export wrote.",
        )
    settings = description["task_settings"]
    description["task_settings"] = {name: settings[name] for name in settings if name not in _TRAINING_ONLY}
    return module, description


def damaged(path: Path, error: BaseException) -> UserError:
    """The error for a file that a library cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path} cannot be read: {reason}", "It may be cut short: copy it again, or export it anew.")


def _open_onnx(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        hint = "Install it: pip install 'ddp_ft[export]'."
        raise UserError(f"Running {path} needs onnxruntime, which is not installed.", hint) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # else each of several ranks would take all cores
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    there = onnxruntime.get_available_providers()
    providers = [each for each in [*wanted, "CPUExecutionProvider"] if each in there]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        texts = session.get_modelmeta().custom_metadata_map
        description = {name: json.loads(text) for name, text in texts.items()}
    except Exception as error:  # it has many kinds of its own
        raise damaged(path, error) from None
    takes_pictures = session.get_inputs()[0].name == RAW_IMAGES

    def run(images: Tensor) -> Tensor:
        if takes_pictures:  # they come scaled by 1
            images = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        given = {session.get_inputs()[0].name: images.contiguous().cpu().numpy()}
        return torch.from_numpy(session.run(None, given)[0]).to(images.device)

    return ExportedModule(run), description


def _open_pt2(path: Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    extra = {DESCRIPTION: ""}
    try:
        _refuse_foreign_code(path)
        program = torch.export.load(path, extra_files=extra)
        description = json.loads(extra[DESCRIPTION] or "{}")
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        module = program.module()
    except UserError:
        raise
    except Exception as error:
        raise damaged(path, error) from None
    if description.get("channels_last"):
        module = module.to(memory_format=torch.channels_last)
    return ExportedModule(module), description


def _refuse_foreign_code(path: Path) -> None:
    """UserError for a .pt2 with objects that only pickle opens, or with machine code: it could run anything.

    torch opens both without a question; what export writes is tensors and JSON.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if parts[-1].startswith(("custom_obj_", "opaque_obj_")) or "aotinductor" in parts:
                raise _foreign(path, name)
            if name.endswith("_config.json") and _has_pickles(json.loads(archive.read(name))):
                raise _foreign(path, name)
            if name.endswith(".pt"):
                with archive.open(name) as stream:
                    _check_tensors(path, name, stream.read())


def _has_pickles(config: Any) -> bool:
    entries = config.get("config", {}).values() if isinstance(config, dict) else []
    return any(entry.get("use_pickle") for entry in entries)


def _check_tensors(path: Path, name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        raise _foreign(path, name) from None


def _foreign(path: Path, name: str) -> UserError:
    return UserError(
        f"{path} holds more than tensors ({name}) and is not opened: it could run foreign code.",
        "Expected a file that ddp-ft export wrote.",
    )
