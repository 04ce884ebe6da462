"""A model as a .pt2 file of torch.export."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddp_ft.exporters.onnx import quiet
from ddp_ft.files import write_bytes
from ddp_ft.inference.exported import DESCRIPTION


def write_pt2(program: Any, file: Path, description: Mapping[str, Any]) -> None:
    """Write the program with its description beside it in the file."""
    with quiet():
        content = io.BytesIO()  # given a path, torch aborts the process where the disk is full
        torch.export.save(program, content, extra_files={DESCRIPTION: json.dumps(description)})
    write_bytes(file, content.getvalue(), durable=False)
