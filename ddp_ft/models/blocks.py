"""The blocks of a network in the order of its forward pass: for layer-wise rates, and for freezing up to a depth.

timm's models name their blocks themselves (`group_matcher`). Those of all others are read from the tree of modules,
whose order of registration is taken for that of the forward pass; if that is wrong for a model of your own, give it a
`group_matcher(coarse)` as timm's have: {"stem": regex, "blocks": regex with a group for the number}.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from torch import nn

from ddp_ft.models.adapter_names import is_adapter

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Two places that hold blocks are parts of one chain (CaiT's two kinds of blocks); networks with stages have three
# (LeViT, ShuffleNet) or more.
_FEWEST_STAGES = 3
# A matcher that finds fewer than two blocks between the stem and the rest is ignored.
_FEWEST_GROUPS = 3


def block_depths(module: nn.Module, head: Collection[str]) -> dict[str, int]:
    """Return the depth of every parameter by its name: 0 for the stem, then the blocks; the head's is the largest.

    The stem is all before the first block: patch embedding, positional tables, class token. What follows the blocks,
    such as a final norm, is as deep as the head (as in BEiT, arXiv 2106.08254), unless timm counts it to the last
    block.
    """
    groups = _timm_groups(module, head, coarse=False) or _read_tree(module, head).by_depth
    depths = {name: depth for depth, names in enumerate(groups) for name in names}
    return {name: depths.get(name, len(groups) - 1) for name, _ in module.named_parameters()}


def stages(module: nn.Module, head: Collection[str]) -> list[list[str]]:
    """Return the names of the parameters of the stem, and of each stage after it, in order, without the head's.

    A transformer's stages are its blocks. What is between the last stage and the head belongs to that stage, so that
    all stages together are all but the head.
    """
    *first, last = _timm_groups(module, head, coarse=True) or _read_tree(module, head).by_stage
    if first:
        first[-1] = [*first[-1], *last]
    return first or [last]


def repeated_blocks(module: nn.Module, head: Collection[str]) -> list[str]:
    """Return the names of the modules that are blocks of a class with several instances, in order; none for a network
    without such blocks (VGG)."""
    tree = _Tree(module, head)
    blocks = [unit for unit in tree.units(module) if unit.place is not None and unit.path]
    return [unit.path for unit in blocks if unit.kind not in (None, *_CONTAINERS) and tree.counts[unit.kind] > 1]


def _timm_groups(module: nn.Module, head: Collection[str], coarse: bool) -> list[list[str]] | None:
    """The stem, the blocks or stages, and the rest, from the model's own matcher; None if it has none that works."""
    if not hasattr(module, "group_matcher"):
        return None
    from timm.models import group_parameters

    try:
        matcher = module.group_matcher(coarse=coarse)  # type: ignore[operator]
        # CaiT's, the only relevant one that is no table, counts its last blocks twice.
        if not isinstance(matcher, dict):
            return None
        found = group_parameters(module, matcher, reverse=True)
    except Exception:  # RDNet has no coarse one, and a user's own may do anything
        return None
    deepest = max(found.values())
    last = deepest if any(found[name] == deepest for name in head) else deepest + 1
    groups = [[name for name in found if found[name] == depth and name not in head] for depth in range(last + 1)]
    return groups if last >= _FEWEST_GROUPS else None


@dataclass(frozen=True)
class _Unit:
    """Parameters that belong together. `kind` is their module's class, None for parameters that a module has besides
    its children; `place` is the path of the block's parent, None for what is no block; `path` is the module's own."""

    names: list[str]
    kind: type | None = None
    place: str | None = None
    path: str = ""


@dataclass(frozen=True)
class _Chain:
    """The stem, the blocks with the place of each, and what follows them."""

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
        runs = groupby(zip(self.places, self.blocks, strict=True), key=itemgetter(0))
        return [self.stem, *([name for _, names in run for name in names] for _, run in runs), self.rest]


def _read_tree(module: nn.Module, head: Collection[str]) -> _Chain:
    """Return the chain of blocks; in a network without any (VGG) each layer with a matrix of weights is one."""
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
            rest += unit.names  # such as a downsampling: it belongs to the next block, as in timm
        else:
            stem += unit.names
    return _Chain(stem, blocks, places, rest)


def _without_stem(units: list[_Unit]) -> Iterator[_Unit]:
    """The first module is the stem even if it looks like a block, such as several convolutions."""
    first = next((unit for unit in units if unit.kind is not None), None)
    for unit in units:
        yield _Unit(unit.names, unit.kind) if unit is first else unit


class _Tree:
    """Walks the modules in their order, into those that hold blocks and never into a block."""

    def __init__(self, module: nn.Module, head: Collection[str]) -> None:
        self.head = set(head)
        self.body = {name for name, _ in module.named_parameters() if name not in self.head}
        self.counts = Counter(type(each) for each in module.modules())
        self.stage_classes = {type(each) for each in module.modules() if _holds_blocks(each)}
        self.block_classes = {type(each) for each in module.modules() if _matrices(each) > 1} - set(_CONTAINERS)

    def units(self, module: nn.Module, path: str = "", stage: str | None = None) -> Iterator[_Unit]:
        """Yield the module's parts in order, without the head. `stage` is the path of the stage that contains it."""
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
        """Return the block's place, None if it is no block. A block has at least two matrices, unlike a convolution
        with its norm or a downsampling; a smaller one of the same class is one too (the first of EfficientNetV2)."""
        return holder if _matrices(child) > 1 or type(child) in self.block_classes else None

    def opens(self, child: nn.Module, path: str) -> bool:
        """Whether it is no block but holds some, or holds the head besides other modules."""
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
    """Walks into everything: the blocks are the single layers."""

    def opens(self, child: nn.Module, path: str) -> bool:
        return bool(_with_parameters(child))

    def place(self, child: nn.Module, holder: str, path: str) -> str | None:
        # Each has a place of its own, and so is a stage. A layer with only vectors, a norm, belongs to the next.
        return path if _matrices(child) else None


def _with_parameters(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if next(child.parameters(), None) is not None]


def _matrices(module: nn.Module) -> int:
    """The number of parameters with at least two dimensions of more than one value, an adapter's not counted."""
    own = [parameter for name, parameter in module.named_parameters() if not is_adapter(name)]
    return sum(sum(side > 1 for side in parameter.shape) > 1 for parameter in own)


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
