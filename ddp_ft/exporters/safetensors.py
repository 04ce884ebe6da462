"""A model as a folder of weights and a configuration that timm, or a hub for models, loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError, printable, shortened
from ddp_ft.models import LINEAR
from ddp_ft.run_folder.model_folder import save_model_folder

CONFIG, README = "config.json", "README.md"


def check_buildable(description: Mapping[str, Any]) -> None:
    """UserError for a model that its library alone cannot build."""
    head = description.get("head", {}).get("name", LINEAR)
    if head != LINEAR:
        raise UserError(
            f"--format safetensors: the model ends with a head of its own ({head}), which its library does not build.",
            "Use --format onnx or torch_export.",
        )
    if description["library"] == "torchvision" and "in_chans" in description["arguments"]:
        channels = description["arguments"]["in_chans"]
        raise UserError(
            f"--format safetensors: the model takes {channels} channels, and torchvision builds it for 3 alone.",
            "Use --format onnx or torch_export.",
        )


def write_folder(
    folder: Path, module: nn.Module, description: Mapping[str, Any], preprocess: Preprocess, classes: tuple[str, ...]
) -> None:
    """model.safetensors, model.json (for ddp_ft), config.json (for timm models) and README.md, into a new folder."""
    save_model_folder(folder, module.state_dict(), description)
    if description["library"] == "timm":
        config = json.dumps(timm_config(module, description, preprocess, classes), indent=2)
        (folder / CONFIG).write_text(config + "\n", encoding="utf-8", errors="backslashreplace")
    text = "\n".join(_readme(description, preprocess, classes)) + "\n"
    (folder / README).write_text(text, encoding="utf-8", errors="backslashreplace")


def timm_config(
    module: nn.Module, description: Mapping[str, Any], preprocess: Preprocess, classes: tuple[str, ...]
) -> dict[str, Any]:
    """config.json as timm.models.push_to_hf_hub writes it and `create_model("local-dir:...")` reads it."""
    own: Any = module.pretrained_cfg
    outputs = description["arguments"]["num_classes"]
    arguments = {name: value for name, value in description["arguments"].items() if name != "num_classes"}
    kept = ("first_conv", "classifier", "fixed_input_size")
    return {
        "architecture": description["name"].partition(".")[0],
        "num_classes": outputs,
        "num_features": getattr(module, "num_features", None),
        "label_names": list(classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "num_classes": outputs,
            "input_size": [preprocess.channels, *preprocess.size],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
            "custom_load": False,
            **{name: own[name] for name in kept if own.get(name) is not None},
        },
    }


def _readme(description: Mapping[str, Any], preprocess: Preprocess, classes: tuple[str, ...]) -> list[str]:
    """README.md: the facts, and Python that loads the folder without this package."""
    library, name = description["library"], description["name"]
    arguments = ", ".join(f"{key}={value!r}" for key, value in description["arguments"].items())
    load = 'model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))'
    title, more = f"{name}, fine-tuned", []
    if library == "timm":
        code = [
            "import timm",
            "",
            'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # on a hub: "hf-hub:OWNER/NAME"',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
            'classes = model.pretrained_cfg["label_names"]',
        ]
    elif library == "torchvision":
        made = f'torchvision.models.get_model("{name}", {arguments})'
        code = ["import safetensors.torch, torchvision", "", f"model = {made}.eval()", load]
    else:
        factory = name.rpartition(":")[2]
        title = "A model of your own, fine-tuned"
        more = [f"`{factory}` is the function that the model was trained with.", ""]
        code = ["import safetensors.torch", "", f"model = {factory}({arguments}).eval()", load]
    return [f"# {title}", "", *_facts(description, preprocess, classes), *more, "```python", *code, "```"]


def _facts(description: Mapping[str, Any], preprocess: Preprocess, classes: tuple[str, ...]) -> list[str]:
    height, width = preprocess.size
    kind = {1: "grey", 3: "RGB"}.get(preprocess.channels, f"{preprocess.channels} channels")
    return [
        f"Task: {description['task']}. Outputs, in their order: {shortened([*map(printable, classes)], 20)}.",
        "",
        f"Input: {kind}, {height} x {width} (resized by {preprocess.interpolation}, the middle "
        f"{preprocess.crop_pct:g} of it cut out), values 0 to 1 less {list(preprocess.mean)}, divided by "
        f"{list(preprocess.std)}.",
        *_about_values(preprocess),
        "",
    ]


def _about_values(preprocess: Preprocess) -> list[str]:
    if preprocess.value_range is None:
        return []
    low, high = preprocess.value_range
    return [f"In images of more than 8 bits {low:g} becomes 0 and {high:g} becomes 1; what is beyond them is cut off."]
