"""Load weights into a built model: what fits is loaded, a head of another size is not, the rest is an error."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.errors import UserError, shortened
from ddp_ft.models.adapter_names import is_adapter
from ddp_ft.models.channels import with_input_of
from ddp_ft.models.libraries.base import State
from ddp_ft.models.libraries.registry import full_name, get_library, resolve
from ddp_ft.models.state_names import best_candidate, renamed_head
from ddp_ft.models.weight_files import Contents, find_file, read_weights_file
from ddp_ft.texts import plural

_SHOWN = 3  # names of each kind in a message


def load_weights(built: BuiltModel, name: str, weights: str) -> LoadReport:
    """Load `weights` ("pretrained", "none", a file or a run folder) into the model that `name` built.

    Raises UserError if they cannot be fetched or read, and if they are of another architecture: a tensor outside
    the head has another shape, or less than half of the tensors outside the head were found.
    """
    if weights == "none":
        return LoadReport("")
    source, found = _obtain(name, weights)
    target = {name: tensor for name, tensor in built.module.state_dict().items() if not is_adapter(name)}
    library = get_library(built.spec["library"])
    chosen = best_candidate(found.states, target, lambda state: library.adapt(built.module, state))
    head = _head_tensors(built, target)
    state, notes = _with_head(chosen.state, target, head)
    state, about_input = with_input_of(state, target)
    report, wrong_size = _match(source, state, target, head)
    _refuse_strangers(built, report, wrong_size, head, found)
    _refuse_unusable(source, {name: (state[name], target[name]) for name in report.loaded})
    skipped = [f"skipped objects: {shortened(found.skipped, _SHOWN)}"] if found.skipped else []
    report = replace(report, notes=(*chosen.notes(), *notes, *about_input, *skipped))
    with torch.no_grad():
        # Copied name by name: load_state_dict of some models wants a version that files lack (mnasnet).
        for each in report.loaded:
            target[each].copy_(state[each])
    return report


def _obtain(name: str, weights: str) -> tuple[str, Contents]:
    if weights != "pretrained":
        file = find_file(weights)
        return str(file), read_weights_file(file)
    key, inner = resolve(name)
    return f"pretrained weights of {full_name(key, inner)}", _pretrained(key, inner)


def _pretrained(key: str, inner: str) -> Contents:
    found = get_library(key).pretrained(inner)
    return read_weights_file(found) if isinstance(found, Path) else Contents({"": found})


def _with_head(state: State, target: State, head: frozenset[str]) -> tuple[State, tuple[str, ...]]:
    """The state with its head under the model's names, if it is certain which tensors these are; and a note of it."""
    names = renamed_head(state, target, head)
    if not names:
        return state, ()
    return {names.get(name, name): tensor for name, tensor in state.items()}, (f"its head is {', '.join(names)}",)


def _head_tensors(built: BuiltModel, target: State) -> frozenset[str]:
    """The names of the head's parameters and buffers (such as the statistics of an mlp's batch norm)."""
    inside = f"{built.head_path}."
    return built.head | {name for name in target if built.head_path is not None and name.startswith(inside)}


def _match(source: str, state: State, target: State, head: frozenset[str]) -> tuple[LoadReport, list[str]]:
    """What becomes of each name, and the names outside the head whose shapes differ."""
    unequal = [name for name in target if name in state and state[name].shape != target[name].shape]
    report = LoadReport(
        source,
        loaded=tuple(name for name in target if name in state and name not in unequal),
        skipped=tuple(name for name in unequal if name in head),
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
    )
    return report, [name for name in unequal if name not in head]


def _refuse_strangers(
    built: BuiltModel, report: LoadReport, wrong_size: list[str], head: frozenset[str], found: Contents
) -> None:
    loaded, missing = ([n for n in names if n not in head] for names in (report.loaded, report.missing))
    body = [*loaded, *wrong_size, *missing]
    if loaded and 2 * len(loaded) >= len(body) and not wrong_size:
        return
    model = full_name(built.spec["library"], built.spec["name"])
    kinds = {"Of another size": wrong_size, "Missing": missing, "In the file only": report.unexpected}
    lines = [f"{label}: {shortened(names, _SHOWN)}" for label, names in kinds.items() if names]
    if any(found.states.keys() - {""}):
        lines += [f"Keys of the file: {shortened(found.keys)}"]
    lines += ["Give the --model of these weights, its --image-size if only that differs, or --weights none."]
    raise UserError(
        f"{report.source} holds weights of another architecture than {model}: of the model's "
        f"{plural(len(body), 'tensor')} besides the head {len(loaded)} match, {len(wrong_size)} differ in size and "
        f"{len(missing)} are missing.",
        "\n".join(lines),
    )


def _refuse_unusable(source: str, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raise UserError for tensors of a file that do not have the numbers of weights; `pairs` are theirs and the
    model's."""
    hint = "Save the state_dict() of a float module, on the CPU."
    if empty := [name for name, (own, _) in pairs.items() if own.is_meta]:
        raise UserError(
            f"{source} has names and sizes without numbers (device meta): {shortened(empty, _SHOWN)}.", hint
        )
    other = [name for name, (own, target) in pairs.items() if target.is_floating_point() and not _is_real(own)]
    if other:
        kinds = shortened(sorted({str(pairs[name][0].dtype).removeprefix("torch.") for name in other}))
        raise UserError(f"{source} has {kinds} where the model has weights: {shortened(other, _SHOWN)}.", hint)
    if broken := [name for name, (own, target) in pairs.items() if not _is_finite(own) and _is_finite(target)]:
        raise UserError(
            f"{source} has numbers that are not finite in {plural(len(broken), 'tensor')}: "
            f"{shortened(broken, _SHOWN)}.",
            "Its training went wrong before it was written; take an earlier checkpoint.",
        )


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype == torch.bool


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; formats of 8 bits are asked as wider ones, since torch has no question for them."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    wide = tensor.float() if tensor.element_size() == 1 or tensor.layout != torch.strided else tensor
    return bool(torch.isfinite(wide.to_dense()).all())


def fetch(name: str) -> str:
    """Download the pretrained weights of a model into its library's cache; return a line that reports it."""
    key, inner = resolve(name)
    library = get_library(key)
    state = _pretrained(key, inner).states[""]
    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    return f"{full_name(key, inner)}: {plural(len(state), 'tensor')}, {size:.0f} MiB, in {library.cache_folder()}"
