"""A folder with a model: model.json and model.safetensors, whole or absent."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddp_ft.contracts import Kept, Processor, Task
from ddp_ft.errors import UserError, nearest, shortened
from ddp_ft.files import OLD, ordinary_mode, replacing_folder, to_json
from ddp_ft.run_folder.contents import Damaged, check_encodable, damaged, read_content
from ddp_ft.run_folder.folds import is_folded

# What model.json has of every model.
_KEYS = {
    "library": (str,), "name": (str,), "arguments": (dict,), "task": (str,), "classes": (list,),
    "task_settings": (dict,), "preprocessing": (dict,), "precision": (str,),
}  # fmt: skip


DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
_NO_FILES: Mapping[str, bytes] = {}


@torch.no_grad()
def restore_weights(module: nn.Module, weights: Mapping[str, Tensor], but: Collection[str] = ()) -> None:
    """Copy all weights and buffers into the module, by name, `but` for those. UserError if names or sizes are not the
    module's."""
    # Not load_state_dict: torchvision's mnasnet expects a version there that safetensors cannot store.
    own = {name: tensor for name, tensor in module.state_dict().items() if name not in but}
    if strangers := sorted(own.keys() ^ weights.keys()):
        raise UserError(f"The stored weights are of another model: {', '.join(strangers[:3])} is in one of them only.")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            sizes = [" x ".join(map(str, each.shape)) or "a number" for each in (weights[name], tensor)]
            raise UserError(
                f"The stored weights are of another model: {name} is {sizes[0]} there, and {sizes[1]} here."
            )
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def save_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors, the same values always as the same bytes."""
    # safetensors refuses channels_last and shared memory; one metadata key keeps the header's order stable.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    with ordinary_mode(file):
        save_file(plain, file, metadata={"format": "pt"})


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. OSError if it cannot be opened, SafetensorError if it is damaged,
    UserError for a name that is not UTF-8."""
    check_encodable(file)
    file.open("rb").close()  # safetensors reports whatever hinders it as a file that is not there
    return load_file(file)


def save_model_folder(
    folder: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any], files: Mapping[str, bytes] = _NO_FILES
) -> None:
    """Replace `folder` (best/) by one with these weights, model.json and `files`, by name; durable on return."""
    recover_model_folder(folder)
    with replacing_folder(folder, durable=True) as aside:
        save_weights(aside / WEIGHTS, weights)
        for name, content in files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(content)
        (aside / DESCRIPTION).write_text(to_json(description), encoding="utf-8")


def recover_model_folder(folder: Path) -> None:
    """Bring back the older model if a process was killed between renaming it and renaming the new one."""
    old = folder.with_name(f"{OLD}{folder.name}")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


# In model.json: the adapter that learned, and what it is on; absent without one.
ADAPTER = "adapter"
# In model.json: the views of each image whose mean prediction counts; absent for the image alone.
VIEWS = "views"
# In summary.json: the metrics of the best model on the validation set with these views.
VAL_VIEWS = "val_views"


def describe_model(
    spec: Mapping[str, Any], processor: Processor, task: Task, names: Sequence[str], precision: str,
    channels_last: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """model.json: all that is needed to build the model again and to prepare its input; `names` are its outputs' names.

    If `channels_last` is None, the rule of `resolve_format` holds.
    """
    return {
        **spec,
        "task": task.name,
        "classes": list(names),
        "task_settings": task.settings(),
        "preprocessing": processor.to_mapping(),
        "precision": precision,
        **({} if channels_last is None else {"channels_last": channels_last}),
    }


def model_folder(path: Path) -> Path:
    """The folder with model.json: `path` or its best/. UserError if there is none."""
    for folder in (path, path / "best"):
        if (folder / "model.json").is_file():
            return folder
    what = "has no best/model.json yet" if path.is_dir() else "is no model" if path.exists() else "is not there"
    hint = "Expected the run folder of a training run that was evaluated at least once, or an exported model."
    raise UserError(f"{path} {what}.", _where_else(path) or hint)


def _where_else(path: Path) -> str:
    """Which run folder may be meant: the one that the path is in, one of those in it, or one of a similar name."""
    if around := [each for each in list(path.parents)[:3] if (each / "best" / "model.json").is_file()]:
        return f"Name the run folder: {around[0]}"
    with suppress(OSError):
        if path.is_dir():
            if is_folded(path):
                return "predict and evaluate combine its folds; here name one of them, such as fold_1."
            inside = sorted(str(file.parent.parent) for file in path.glob("*/best/model.json"))
            return f"Name one of its runs: {shortened(inside)}." if inside else ""
        if not path.exists():
            return nearest(path.name, [each.name for each in path.parent.iterdir()], folder=path.parent)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".csv"):
            return "The model is named first: a run folder, or an exported model."
    return ""


def kept_in(folder: Path) -> Kept:
    """What reads the files that `save_model_folder` wrote beside model.json."""
    return lambda name: (folder / name).read_bytes()


def other_files(folder: Path) -> dict[str, bytes]:
    """These files, by name."""
    return {file.name: file.read_bytes() for file in files_in(folder)[2:]}


def files_in(folder: Path) -> list[Path]:
    """All files of a model folder: model.json, the weights, the others."""
    own = (DESCRIPTION, WEIGHTS)
    others = (file for file in sorted(folder.iterdir()) if file.name not in own and file.is_file())
    return [*(folder / name for name in own), *others]


def read_description(folder: Path) -> dict[str, Any]:
    """model.json of a model folder. UserError if it is damaged, or is not there."""
    file = folder / "model.json"
    content = read_content(file, dict, _KEYS)
    if content is None:
        raise damaged(file, "is not there")
    return content


def is_sound(folder: Path) -> bool:
    """Whether the folder holds a model of which no part is missing; of the weights only their names are read."""
    try:
        read_description(folder)
        with safe_open(folder / "model.safetensors", "pt"):
            return True
    except (Damaged, OSError, SafetensorError):
        return False
