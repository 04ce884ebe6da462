"""The blocks of a network in the order of its forward pass: for layer-wise rates, and for freezing up to a depth.

timm's models tell their blocks themselves (`group_matcher`). Those of all others are read off the tree of modules,
whose order of registration is taken for that of the forward pass; a model of your own for which that is wrong can
have a `group_matcher(coarse)` as timm's have: {"stem": regex, "blocks": regex with a group for the number}.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Two places that hold blocks are parts of one chain (CaiT's two kinds of blocks); networks with stages have three
# (LeViT, ShuffleNet) or more.
_FEWEST_STAGES = 3
# A matcher that finds less than two blocks between the stem and the rest says nothing.
_FEWEST_GROUPS = 3


def block_depths(module: nn.Module, head: Collection[str]) -> dict[str, int]:
    """The depth of every parameter, by its name: 0 for the stem, then the blocks, and the head's is the largest.

    The stem is all before the first block: patch embedding, positional tables, class token. What stands behind the
    blocks, such as a final norm, is as deep as the head (as in BEiT, arXiv 2106.08254), unless timm counts it to the
    last block.
    """
    groups = _timm_groups(module, head, coarse=False) or _read_tree(module, head).by_depth
    depths = {name: depth for depth, names in enumerate(groups) for name in names}
    return {name: depths.get(name, len(groups) - 1) for name, _ in module.named_parameters()}


def stages(module: nn.Module, head: Collection[str]) -> list[list[str]]:
    """The names of the parameters of the stem, and of each stage behind it, in order; those of the head in none.

    A transformer's stages are its blocks. What stands between the last stage and the head belongs to that stage, so
    that all stages together are all but the head.
    """
    *first, last = _timm_groups(module, head, coarse=True) or _read_tree(module, head).by_stage
    if first:
        first[-1] = [*first[-1], *last]
    return first or [last]


def repeated_blocks(module: nn.Module, head: Collection[str]) -> list[str]:
    """The names of the modules that are blocks and of whose class there are several, in order; none for a network
    that has no such blocks (VGG)."""
    tree = _Tree(module, head)
    blocks = [unit for unit in tree.units(module) if unit.place is not None and unit.path]
    return [unit.path for unit in blocks if _recurs(unit.kind, tree)]


def _recurs(kind: type | None, tree: "_Tree") -> bool:
    return kind is not None and kind not in _CONTAINERS and tree.counts[kind] > 1


def _timm_groups(module: nn.Module, head: Collection[str], coarse: bool) -> list[list[str]] | None:
    """The stem, the blocks or stages, and what is behind them, as the model tells; None if it does not."""
    if not hasattr(module, "group_matcher"):
        return None
    from timm.models import group_parameters

    try:
        matcher = module.group_matcher(coarse=coarse)  # type: ignore[operator]
        # The one that is no table and matters, CaiT's, counts its last blocks twice.
        if not isinstance(matcher, dict):
            return None
        found = group_parameters(module, matcher, reverse=True)
    except Exception:  # RDNet has no coarse one; and what a user's own does cannot be known
        return None
    deepest = max(found.values())
    behind = deepest if any(found[name] == deepest for name in head) else deepest + 1
    groups: list[list[str]] = [[] for _ in range(behind + 1)]
    for name, depth in found.items():
        if name not in head:
            groups[depth].append(name)
    return groups if behind >= _FEWEST_GROUPS else None


@dataclass(frozen=True)
class _Unit:
    """Parameters that stand together. `kind` is the class of their module, None for a module's parameters of its own
    beside modules that it holds; `place` is the path of what holds the block, None for what is no block; `path` is
    the module's own."""

    names: list[str]
    kind: type | None = None
    place: str | None = None
    path: str = ""


@dataclass(frozen=True)
class _Chain:
    """The stem, the blocks with the place of each, and what stands behind them."""

    stem: list[str]
    blocks: list[list[str]]
    places: list[str]
    rest: list[str]

    @property
    def by_depth(self) -> list[list[str]]:
        return [self.stem, *self.blocks, self.rest]

    @property
    def by_stage(self) -> list[list[str]]:
        if len(set(self.places)) < _FEWEST_STAGES:
            return self.by_depth
        found: list[list[str]] = []
        for number, names in enumerate(self.blocks):
            if number and self.places[number] == self.places[number - 1]:
                found[-1] += names
            else:
                found.append(list(names))
        return [self.stem, *found, self.rest]


def _read_tree(module: nn.Module, head: Collection[str]) -> _Chain:
    """The chain of blocks; of a network without any (VGG) each layer with a matrix of weights is one."""
    units = list(_Tree(module, head).units(module))
    if sum(unit.place is not None for unit in _without_stem(units)) < 2:
        units = list(_Layers(module, head).units(module))
    stem: list[str] = []
    rest: list[str] = []
    blocks: list[list[str]] = []
    places: list[str] = []
    for unit in _without_stem(units):
        if unit.place is not None:
            blocks.append([*rest, *unit.names])
            places.append(unit.place)
            rest = []
        elif blocks:
            rest += unit.names  # such as a downsampling: the next block's, as in timm
        else:
            stem += unit.names
    return _Chain(stem, blocks, places, rest)


def _without_stem(units: list[_Unit]) -> Iterator[_Unit]:
    """The first module is the stem even if it looks like a block: several convolutions, say."""
    modules = (number for number, unit in enumerate(units) if unit.kind is not None)
    first = next(modules, None)
    for number, unit in enumerate(units):
        yield _Unit(unit.names, unit.kind) if number == first else unit


class _Tree:
    """Walks the modules in their order, going into what holds blocks and never into a block."""

    def __init__(self, module: nn.Module, head: Collection[str]) -> None:
        self.head = set(head)
        self.body = {name for name, _ in module.named_parameters() if name not in self.head}
        self.counts = Counter(type(each) for each in module.modules())
        self.stage_classes = {type(each) for each in module.modules() if _holds_blocks(each)}
        self.block_classes = {type(each) for each in module.modules() if _matrices(each) > 1} - set(_CONTAINERS)

    def units(self, module: nn.Module, path: str = "", stage: str | None = None) -> Iterator[_Unit]:
        """What the module holds, in order, without the head. `stage` is the path of the stage that it is part of."""
        if own := self._known(module, path, recurse=False):
            yield _Unit(own)
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            names = self._known(child, inner)
            if names and self.opens(child, inner):
                is_stage = type(child) in self.stage_classes and self.counts[type(child)] > 1
                yield from self.units(child, inner, inner if is_stage else stage)
            elif names:
                place = path if stage is None else stage
                yield _Unit(names, type(child), self.place(child, place, inner), inner)

    def _known(self, module: nn.Module, path: str, recurse: bool = True) -> list[str]:
        return [name for name, _ in module.named_parameters(path, recurse) if name in self.body]

    def place(self, child: nn.Module, holder: str, path: str) -> str | None:
        """Where the block stands. One has at least two matrices: a convolution with its norm is none, nor is a
        downsampling. A smaller one of the same class is one too (the first of EfficientNetV2)."""
        return holder if _matrices(child) > 1 or type(child) in self.block_classes else None

    def opens(self, child: nn.Module, path: str) -> bool:
        """Whether it is no block, but holds some; or holds the head besides others."""
        inside = _with_parameters(child)
        if not inside:
            return False
        if any(name.startswith(f"{path}.") for name in self.head):
            return True
        if isinstance(child, _CONTAINERS):
            return any(_with_parameters(each) for each in inside)
        if type(child) in self.stage_classes:
            return True
        # The only one of its class may be an encoder; several of a class are blocks themselves.
        return self.counts[type(child)] == 1 and self._repeats(child, path)

    def _repeats(self, child: nn.Module, path: str) -> bool:
        kinds = Counter(unit.kind for unit in self.units(child, path) if unit.place is not None)
        return max(kinds.values(), default=0) > 1


class _Layers(_Tree):
    """Goes into everything: the blocks are the single layers."""

    def opens(self, child: nn.Module, path: str) -> bool:
        return bool(_with_parameters(child))

    def place(self, child: nn.Module, holder: str, path: str) -> str | None:
        # Each has a place of its own, and so is a stage. A layer of vectors alone, a norm, is counted to the next.
        return path if _matrices(child) else None


def _with_parameters(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def _matrices(module: nn.Module) -> int:
    """How many parameters have two dimensions or more of more than one value."""
    return sum(sum(side > 1 for side in parameter.shape) > 1 for parameter in module.parameters())


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a stage: a module with a list of several blocks of one class."""
    lists = [child for child in module.children() if isinstance(child, _CONTAINERS)]
    return not isinstance(module, _CONTAINERS) and any(_are_blocks(_with_parameters(each)) for each in lists)


def _are_blocks(modules: list[nn.Module]) -> bool:
    kinds = {type(each) for each in modules}
    return (
        len(modules) > 1
        and len(kinds) == 1
        and not issubclass(kinds.pop(), _CONTAINERS)
        and all(_matrices(each) > 1 for each in modules)
    )
