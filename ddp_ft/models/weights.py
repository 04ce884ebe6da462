"""Weights into a built model: what fits is loaded, a head of another size is not, the rest is an error."""

from dataclasses import dataclass

import torch

from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.errors import UserError
from ddp_ft.models.files import find_file, read_state, strip_prefixes
from ddp_ft.models.libraries.base import State, full_name, get_library
from ddp_ft.models.names import resolve

_SHOWN = 3  # names of each kind in a message


@dataclass(frozen=True)
class _Match:
    """The names of a state and of a model, by what becomes of them."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    wrong_size: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_weights(built: BuiltModel, name: str, weights: str) -> LoadReport:
    """Load `weights` ("pretrained", "none", a file or a run folder) into the model that `name` built.

    Raises UserError if they cannot be had or read, and if they are of another architecture: a tensor outside
    of the head that has another shape, or less than half of the tensors outside of the head found.
    """
    if weights == "none":
        return LoadReport("")
    source, state = _obtain(name, weights)
    target = built.module.state_dict()
    state = _adapt(built, strip_prefixes(state, set(target)), target)
    head = _head_tensors(built, target)
    match = _match(state, target, head)
    _refuse_strangers(built, source, match, head)
    with torch.no_grad():
        # Copied name by name: load_state_dict of some models wants a version that files lack (mnasnet).
        for each in match.loaded:
            target[each].copy_(state[each])
    return LoadReport(source, match.loaded, match.skipped, match.missing, match.unexpected)


def _obtain(name: str, weights: str) -> tuple[str, State]:
    if weights != "pretrained":
        file = find_file(weights)
        return str(file), read_state(file)
    key, inner = resolve(name)
    library = get_library(key)
    state = library.pretrained(inner)
    return f"pretrained weights of {full_name(key, inner)}", state


def _adapt(built: BuiltModel, state: State, target: State) -> State:
    """What the library makes of the state, unless that fits worse than the state as it is."""
    adapted = get_library(built.spec["library"]).adapt(built.module, state)
    return adapted if _fitting(adapted, target) > _fitting(state, target) else state


def _fitting(state: State, target: State) -> int:
    return sum(name in target and target[name].shape == tensor.shape for name, tensor in state.items())


def _head_tensors(built: BuiltModel, target: State) -> frozenset[str]:
    """The names of the head's parameters and buffers, such as the statistics of an mlp's batch norm."""
    inside = f"{built.head_path}."
    return built.head | {name for name in target if built.head_path is not None and name.startswith(inside)}


def _match(state: State, target: State, head: frozenset[str]) -> _Match:
    shared = [name for name in target if name in state]
    unequal = [name for name in shared if state[name].shape != target[name].shape]
    return _Match(
        loaded=tuple(name for name in shared if name not in set(unequal)),
        skipped=tuple(name for name in unequal if name in head),
        wrong_size=tuple(name for name in unequal if name not in head),
        missing=tuple(name for name in target if name not in state),
        unexpected=tuple(name for name in state if name not in target),
    )


def _refuse_strangers(built: BuiltModel, source: str, match: _Match, head: frozenset[str]) -> None:
    loaded, missing = ([n for n in names if n not in head] for names in (match.loaded, match.missing))
    body = [*loaded, *match.wrong_size, *missing]
    if loaded and 2 * len(loaded) >= len(body) and not match.wrong_size:
        return
    model = full_name(built.spec["library"], built.spec["name"])
    lines = [
        *_examples("Of another size", match.wrong_size),
        *_examples("Missing", tuple(missing)),
        *_examples("In the file only", match.unexpected),
        "Give the --model that the weights were made with, its --image-size if only that differs, or --weights none.",
    ]
    raise UserError(
        f"{source} holds weights of another architecture than {model}: of the model's {len(body)} tensors "
        f"besides the head {len(loaded)} match, {len(match.wrong_size)} differ in size and "
        f"{len(missing)} are missing.",
        "\n".join(lines),
    )


def _examples(label: str, names: tuple[str, ...]) -> list[str]:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return [f"{label}: {shown}"] if names else []


def fetch(name: str) -> str:
    """Download the pretrained weights of a model into its library's cache; gives a line that says so."""
    key, inner = resolve(name)
    library = get_library(key)
    state = library.pretrained(inner)
    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    return f"{full_name(key, inner)}: {len(state)} tensors, {size:.0f} MiB, in {library.cache_folder()}"
