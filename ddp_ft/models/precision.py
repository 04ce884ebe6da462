"""The number format and the memory format in which a model computes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ddp_ft.errors import UserError

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return torch.amp's autocast for that precision; a null context for fp32."""
    dtype = AMP_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return 'fp32', 'bf16' or 'fp16'. Raises UserError for a format that the device does not compute in."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # The instructions that oneDNN needs to compute in bf16 at all (avx512 and later).
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if requested == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if requested == "bf16" and not has_bf16:
        raise UserError(
            f"--precision bf16: this {device.type} device does not compute in bf16.", "Use --precision fp32."
        )
    if requested == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a CUDA device.", "On a CPU use --precision fp32, or bf16 if it has it.")
    return requested


def resolve_format(requested: str, module: nn.Module) -> bool:
    """Whether the model and its images are in channels_last memory."""
    return is_convolutional(module) if requested == "auto" else requested == "channels_last"


def is_convolutional(module: nn.Module) -> bool:
    """Whether channels_last is faster: the network has more real convolutions than a patch embedding.

    Measured on CPU: EfficientNet-Lite0 trains 1.7-1.9x, MobileNetV2 1.5x as fast in channels_last.
    """
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return len(convolutions) > 3


def place(module: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Move the module to its device, in its memory format; return it."""
    return module.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def same_precision(trained_in: str, device: torch.device) -> str:
    """Return the precision of training if the device has it, so that the numbers are those of the run; else fp32."""
    try:
        return resolve_precision(trained_in, device)
    except UserError:
        return "fp32"
