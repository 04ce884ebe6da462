"""Models of texts as files for other programs: inputs by transformers' names, any number of texts and tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddp_ft.data.text.inputs import IDS, MASK, TYPES
from ddp_ft.data.text.processor import TextProcessor
from ddp_ft.errors import UserError
from ddp_ft.exporters.compare import Report
from ddp_ft.exporters.compare_texts import compare_texts, text_processor, texts_to_compare
from ddp_ft.exporters.onnx import quiet, write_onnx
from ddp_ft.exporters.pair import Pair
from ddp_ft.exporters.pt2 import write_pt2
from ddp_ft.exporters.request import ONNX_FORMAT, SAFETENSORS, WEIGHTS, ExportRequest
from ddp_ft.inference.exported import describe_exported
from ddp_ft.run_folder.model_folder import model_folder, other_files, save_model_folder


class LogitsAlone(nn.Module):
    """The module called with plain tensors, int64 B x tokens each, in the order of `names`: float32 B x outputs."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *given: Tensor) -> Tensor:
        """As the class says."""
        logits: Tensor = self.module(**dict(zip(self.names, given, strict=True))).logits
        return logits


def export_texts(request: ExportRequest, pair: Pair, aside: Path, device: torch.device) -> Report:
    """Write the export to `aside`, and compare it with the original on texts of several lengths, in batches of several
    sizes. UserError for a wish that texts do not have."""
    _check(request)
    texts = texts_to_compare(request.model, pair.original, request.images, request.count)
    _write(request, pair, aside, device)
    return compare_texts(pair.original, aside, device, texts)


def _check(request: ExportRequest) -> None:
    if request.with_preprocessing:
        raise UserError(
            "--with-preprocessing is for images, and this model takes texts.",
            "Leave it out: the file has the tokenizer in its metadata, and best/ has it as a file.",
        )
    if request.format == SAFETENSORS and request.output.suffix.lower() == WEIGHTS:
        raise UserError(
            f"--output {request.output}: a model of texts is of no use without its tokenizer.",
            "Give the name of a folder; transformers loads it.",
        )


def _write(request: ExportRequest, pair: Pair, aside: Path, device: torch.device) -> None:
    model, description = pair.model, pair.description
    if request.format == SAFETENSORS:
        save_model_folder(aside, model.module.state_dict(), description, other_files(model_folder(request.model)))
        return
    processor = text_processor(pair.original)
    names = [IDS, MASK, *([TYPES] if processor.types else [])]
    files = {name: content.decode() for name, content in processor.files().items()}
    described = {**describe_exported(description, takes_pictures=False), "inputs": names, "files": files}
    program = _traced(LogitsAlone(model.module, names).eval(), processor, device)
    if request.format == ONNX_FORMAT:
        write_onnx(program, aside, described, inputs=dict.fromkeys(names, ("batch", "tokens")))
    else:
        write_pt2(program, aside, described)


def _traced(module: LogitsAlone, processor: TextProcessor, device: torch.device) -> Any:
    """torch.export's program, for any number of texts and tokens."""
    example = torch.ones(3, min(processor.length, 7), dtype=torch.int64, device=device)
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), quiet():
        given = tuple(example.clone() for _ in module.names)
        return torch.export.export(module, given, dynamic_shapes=((dims,) * len(given),), strict=False)
