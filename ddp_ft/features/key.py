"""What features depend on: two starts with the same key compute the same features, and so may share them."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.contracts import BuiltModel

# What of a plan has no part in features. All else has, also what a later version may resolve.
WITHOUT_EFFECT = (
    "recipe", "task", "world_size", "threads", "micro_batch", "workers", "train_samples", "val_samples",
    "steps_per_epoch", "total_steps", "lr", "grade_elsewhere", "lowered", "tuned", "measured",
)  # fmt: skip
# Libraries that read, change or look at images, where they are installed.
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "PyTurboJPEG", "torchcodec")
PACKAGE = Path(__file__).parent.parent
# What besides data/image has a part in features: the draws of augmented views, how images come in batches, what takes a
# damaged one's place, the pass.
_OTHERS = (
    "data/rng.py", "data/loader.py", "data/batch.py", "data/bad_samples/replace.py", "features/extractor.py",
    "models/backbone.py", "models/precision.py",
)  # fmt: skip


def describe_backbone(built: BuiltModel, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone with its weights, the preprocessing, and where and with what it is computed, as JSON values."""
    return {
        "model": {name: value for name, value in built.spec.items() if name != "head"},
        "modules": _digest(_modules(built)),
        "weights": _digest(_tensors(built)),
        "code": _digest(_code(str(built.spec.get("name", "")))),
        "preprocess": built.processor.to_mapping(),
        "plan": {name: value for name, value in plan.items() if name not in WITHOUT_EFFECT},
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "processor": _processor(plan),
    }


def key_of(description: Mapping[str, Any]) -> str:
    """A name for a folder: 32 digits of the description's hash."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:32]


def digest_names(names: Iterable[str]) -> str:
    """A hash of names in their order."""
    return _digest(name.encode("utf-8", "surrogateescape") + b"\n" for name in names)


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _is_of_head(built: BuiltModel, name: str) -> bool:
    path = built.head_path or ""
    return name == path or name.startswith(f"{path}.")


def _tensors(built: BuiltModel) -> Iterable[bytes]:
    for name, tensor in built.module.state_dict().items():
        if not _is_of_head(built, name):
            plain = tensor.detach().cpu().contiguous()
            yield f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode()
            yield plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _modules(built: BuiltModel) -> Iterable[bytes]:
    """What the weights do not tell: strides, activations and the like."""
    for name, module in built.module.named_modules():
        if not _is_of_head(built, name):
            yield f"{name} {_kind(module)} {module.extra_repr()}\n".encode()


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _code(model_name: str) -> Iterable[bytes]:
    """The files that make an image a feature: ours, and the user's file with the model, if it is one."""
    images = sorted((PACKAGE / "data/image").rglob("*.py"))
    yield from (file.read_bytes() for file in [*images, *(PACKAGE / name for name in _OTHERS)])
    theirs = Path(model_name.rpartition(":")[0])
    if theirs.suffix == ".py" and theirs.is_file():
        yield theirs.read_bytes()


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _processor(plan: Mapping[str, Any]) -> list[str]:
    if plan.get("device") == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return [torch.cuda.get_device_name(), capability, str(cudnn), torch.get_float32_matmul_precision()]
    return [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
