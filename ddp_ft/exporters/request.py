"""What is asked of an export, and the formats that there are."""

from dataclasses import dataclass
from pathlib import Path

from ddp_ft.inference.exported import ONNX, PT2

SAFETENSORS, ONNX_FORMAT, TORCH_EXPORT = FORMATS = ("safetensors", "onnx", "torch_export")
WEIGHTS = ".safetensors"
SUFFIXES = {SAFETENSORS: "", ONNX_FORMAT: ONNX, TORCH_EXPORT: PT2}


@dataclass(frozen=True)
class ExportRequest:
    """What to export; `count` samples are compared, of `images` (or texts) if that is given. `merge`: an adapter is
    merged into the weights that it is on anew, and what is compared is the network with both apart."""

    model: Path
    format: str
    output: Path
    device: str = "cpu"
    with_preprocessing: bool = False
    count: int = 32
    images: Path | None = None
    merge: bool = False
