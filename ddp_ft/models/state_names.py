"""Which of a file's states fits a model, and what must be cut from its names, or put before them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ddp_ft.models.libraries.base import State

# What DDP, torch.compile and trainers put before names that a library's own filter knows.
_WRAPPER = re.compile(r"^(module|_orig_mod|model)\.")
_MOST_WRAPPERS = 3
# Parts that torch.compile, activation checkpointing, FSDP and DeepSpeed put into names, also in their middle.
_INSERTED = frozenset(
    ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module")
)
# Averaged weights are better than those of the last step: timm's and others' names of them.
_AVERAGED = re.compile(r"(?i)(^|[._])(ema|teacher|averaged|swa)([._]|$)")
# What optimizers and others keep of each parameter has its name and size too.
_NO_WEIGHTS = re.compile(r"(?i)optim|exp_avg|momentum|velocity|grad|fisher")


@dataclass(frozen=True)
class Candidate:
    """A state of a file under the model's names: `place` in the file, what was `cut` from or `put` before its names or
    taken out of them as `inserted`, and how many of its tensors `fit`, by name and shape."""

    place: str
    state: State
    cut: str = ""
    put: str = ""
    inserted: str = ""
    fit: int = field(default=0, compare=False)

    def notes(self) -> tuple[str, ...]:
        """How it was found, for a report."""
        notes = [f"read from '{self.place}'"] if self.place else []
        notes += [f"without the prefix '{self.cut}.'"] if self.cut else []
        notes += [f"without {self.inserted} within names"] if self.inserted else []
        return (*notes, *([f"with the prefix '{self.put}.'"] if self.put else []))


def best_candidate(states: Mapping[str, State], target: State, adapt: Callable[[State], State]) -> Candidate:
    """The state of which most fits the model's `target`; of equals averaged weights, then the first, and an
    optimizer's values last.

    `adapt` is what the model's library makes of a state; it counts if more fits then.
    """
    ranked = sorted(states, key=lambda place: (*_doubts(place), -len(states[place])))
    found = [_best_variant(Candidate(place, states[place]), target, adapt) for place in ranked]
    return max(found, key=lambda each: each.fit)  # the first of equals


def _doubts(place: str) -> tuple[bool, bool]:
    return bool(_NO_WEIGHTS.search(place)), not _AVERAGED.search(place)


def _best_variant(whole: Candidate, target: State, adapt: Callable[[State], State]) -> Candidate:
    plain = [replace(each, fit=_fitting(each.state, target)) for each in _variants(whole, target)]
    best = max(plain, key=lambda each: each.fit)
    if best.fit == len(target):
        return best
    bare = plain[-1]  # under the names that foreign formats have
    others = [bare] if (bare.cut, bare.put) != (best.cut, best.put) else []
    adapted = [replace(each, state=adapt(each.state)) for each in (best, *others)]
    adapted = [replace(each, fit=_fitting(each.state, target)) for each in adapted]
    return max([best, *adapted], key=lambda each: each.fit)


def _fitting(state: State, target: State) -> int:
    return sum(name in target and target[name].shape == tensor.shape for name, tensor in state.items())


def _variants(whole: Candidate, target: State) -> Iterator[Candidate]:
    """The state as it is, without the prefix and with the prefix that fit best, and without all known wrappers."""
    yield whole
    yield from _prefix_variants(whole, target)
    if inner := _without_inserted(whole):
        yield inner
        yield from _prefix_variants(inner, target)
    state = whole.state
    cut: list[str] = []
    for _ in range(_MOST_WRAPPERS):
        match = _WRAPPER.match(next(iter(state), ""))
        if match is None:
            break
        cut.append(match[1])
        state = {_WRAPPER.sub("", name, count=1): tensor for name, tensor in state.items()}
    yield replace(whole, state=state, cut=".".join(cut))


def _prefix_variants(whole: Candidate, target: State) -> Iterator[Candidate]:
    state = whole.state
    if prefix := _common_prefix(state, target):
        yield replace(whole, state={_without(name, prefix): tensor for name, tensor in state.items()}, cut=prefix)
    if prefix := _common_prefix(target, state):
        yield replace(whole, state={f"{prefix}.{name}": tensor for name, tensor in state.items()}, put=prefix)


def _without_inserted(whole: Candidate) -> Candidate | None:
    """The state without the parts of names that wrappers of single layers insert; None if it has none."""
    split = {name: name.split(".") for name in whole.state}
    found = sorted({part for parts in split.values() for part in parts} & _INSERTED)
    if not found:
        return None
    state = {
        ".".join(part for part in split[name] if part not in _INSERTED): tensor for name, tensor in whole.state.items()
    }
    return replace(whole, state=state, inserted=", ".join(found))


def _common_prefix(longer: State, shorter: State) -> str:
    """The prefix without which most names of `longer` are names of `shorter`, with the same shape; empty if none."""
    votes: Counter[str] = Counter()
    for name, tensor in longer.items():
        parts = name.split(".")
        for count in range(1, len(parts)):
            other = shorter.get(".".join(parts[count:]))
            if other is not None and other.shape == tensor.shape:
                votes[".".join(parts[:count])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")


def _without(name: str, prefix: str) -> str:
    """The name without the prefix, or without what it has in common with it: a head lies beside its backbone."""
    parts, cut = name.split("."), prefix.split(".")
    same = 0
    while same < min(len(cut), len(parts) - 1) and parts[same] == cut[same]:
        same += 1
    return ".".join(parts[same:])


def renamed_head(state: State, target: State, head: frozenset[str]) -> dict[str, str]:
    """{name in the file: name of the model} for a head that the file has under another name; empty unless certain.

    Certain: the file lacks the whole head and nothing else, and for each tensor of it has exactly one other of the same
    kind and shape.
    """
    missing = [name for name in target if name not in state]
    spare = [name for name in state if name not in target]
    if not missing or set(missing) != {name for name in target if name in head}:
        return {}
    pairs = {}
    for name in missing:
        same = [
            each
            for each in spare
            if state[each].shape == target[name].shape and each.rpartition(".")[2] == name.rpartition(".")[2]
        ]
        if len(same) != 1:
            return {}
        pairs[same[0]] = name
    return pairs
