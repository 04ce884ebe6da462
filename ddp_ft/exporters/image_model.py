"""Models of images as files for other programs."""

from pathlib import Path

import torch

from ddp_ft.data.image.processor import preprocess_of
from ddp_ft.exporters.compare import Report, compare, images_to_compare
from ddp_ft.exporters.onnx import check_preprocessing, outputs_alone, trace, write_onnx
from ddp_ft.exporters.pair import Pair
from ddp_ft.exporters.pt2 import write_pt2
from ddp_ft.exporters.request import ONNX_FORMAT, SAFETENSORS, ExportRequest
from ddp_ft.exporters.safetensors import check_buildable, write_folder
from ddp_ft.inference.exported import IMAGES, describe_exported


def export_images(request: ExportRequest, pair: Pair, aside: Path, device: torch.device) -> Report:
    """Write the export to `aside`, and compare it with the original on images. UserError for a preprocessing that
    cannot be put inside."""
    if request.with_preprocessing:
        check_preprocessing(preprocess_of(pair.original.processor))
    _write(request, pair, aside, device)
    images, origin = images_to_compare(request.model, pair.original, request.images, request.count)
    return compare(pair.original, aside, device, images, origin)


def _write(request: ExportRequest, pair: Pair, aside: Path, device: torch.device) -> None:
    model, description = pair.model, pair.description
    module, preprocess = model.module.to(memory_format=torch.contiguous_format), preprocess_of(model.processor)
    if request.format == SAFETENSORS:
        check_buildable(description)
        write_folder(aside, module, description, preprocess, model.names)
        return
    described = describe_exported(description, request.with_preprocessing)
    program = trace(outputs_alone(module, model.call, len(model.names), preprocess), preprocess, device)
    if request.format == ONNX_FORMAT:
        inside = preprocess if request.with_preprocessing else None
        write_onnx(program, aside, described, {IMAGES: ("batch",)}, inside)
    else:
        write_pt2(program, aside, {**described, "channels_last": model.channels_last})
