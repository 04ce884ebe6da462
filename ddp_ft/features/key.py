"""What features depend on: two starts with the same key compute the same features, and may share them."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel, LabelledSource
from ddp_ft.data.derived import path_of
from ddp_ft.plugins import digest_of
from ddp_ft.version import versions_of

# Fields of a plan that features do not depend on. They depend on all others, also those of later versions.
WITHOUT_EFFECT = (
    "recipe", "task", "world_size", "threads", "micro_batch", "workers", "train_samples", "val_samples",
    "steps_per_epoch", "total_steps", "lr", "grade_elsewhere", "lowered", "tuned", "measured", "code",
    "epochs", "evaluation_epochs", "ema_decay", "choice", "why_epochs", "rate_factors", "anchors", "base",
)  # fmt: skip
# Libraries that read, change or look at samples, where they are installed.
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "PyTurboJPEG", "torchcodec", "tifffile")
OF_TEXTS = ("torch", "transformers", "tokenizers", "numpy")
PACKAGE = Path(__file__).parent.parent
# What features depend on besides data/image, or data/text: the draws of augmented views, how samples come in batches,
# what replaces a damaged one, the forward pass.
_OTHERS = (
    "data/rng.py", "data/loader.py", "data/batch.py", "data/derived.py", "data/bad_samples/replace.py",
    "features/extractor.py", "models/backbone.py", "models/precision.py",
)  # fmt: skip


def describe_backbone(built: BuiltModel, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backbone with its weights, the preprocessing, and where and with what it computes, as JSON values."""
    return {
        "model": {name: value for name, value in built.spec.items() if name not in ("head", "code")},
        "modules": _digest(_modules(built)),
        "weights": _digest(_tensors(built)),
        "code": _digest(_code(built.processor.kind, str(built.spec.get("name", "")))),
        "preprocess": built.processor.to_mapping(),
        "plan": {name: value for name, value in plan.items() if name not in WITHOUT_EFFECT},
        "libraries": versions_of(OF_TEXTS if built.processor.kind == "text" else LIBRARIES),
        "processor": _processor(plan),
    }


def describe_view(config: RunConfig, view: int) -> dict[str, Any]:
    """Return what an augmented view depends on besides, as JSON values: also the user's file, if one augments."""
    code = digest_of(config.augment.transform) if config.augment.transform else None
    return {"view": view, "seed": config.seed, "augment": vars(config.augment), "code": code}


def key_of(description: Mapping[str, Any]) -> str:
    """Return a name for a folder: 32 digits of the description's hash."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:32]


def digest_names(source: LabelledSource) -> str:
    """Return a hash of the paths of a source's samples, in their order."""
    paths = (path_of(source, index) for index in range(len(source)))
    return _digest(path.encode("utf-8", "surrogateescape") + b"\n" for path in paths)


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
    """What weights do not hold: strides, activations and the like."""
    for name, module in built.module.named_modules():
        if not _is_of_head(built, name):
            kind = type(module)
            yield f"{name} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}\n".encode()


def _code(kind: str, model_name: str) -> Iterable[bytes]:
    """The files that turn a sample of that kind into a feature: ours, and the user's with the model, if any."""
    own = sorted((PACKAGE / "data" / kind).rglob("*.py"))
    yield from (file.read_bytes() for file in [*own, *(PACKAGE / name for name in _OTHERS)])
    theirs = Path(model_name.rpartition(":")[0])
    if theirs.suffix == ".py" and theirs.is_file():
        yield theirs.read_bytes()


def _processor(plan: Mapping[str, Any]) -> list[str]:
    if plan.get("device") == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return [torch.cuda.get_device_name(), capability, str(cudnn), torch.get_float32_matmul_precision()]
    return [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()]
