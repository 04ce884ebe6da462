"""`ddp-ft models`: all models, and the parts of one, for --freeze and --layer-decay."""

import sys
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from ddp_ft.cli.completion import complete_model, store_names
from ddp_ft.cli.output import check_printed, json_text, print_result
from ddp_ft.errors import UserError, nearest
from ddp_ft.texts import count

if TYPE_CHECKING:
    from torch import nn

_WIDTH = 80
_COLUMNS = "{:>4} {:>5} {:>12} {:>7}  {}"
_LONGEST = _WIDTH - len(_COLUMNS.format("", "", "", "", ""))
# The most models that are built, without memory for their weights, to count their parameters: 0.3 s each.
_BUILT = 20
_OUTPUTS = 2  # of the head, whose size is no property of the model


@click.command()
@click.argument("pattern", required=False, metavar="[PATTERN]", shell_complete=complete_model)
@click.option("--layers", is_flag=True, help="Show the stages and blocks of one model, by its name.")
@click.option("--table", "as_table", is_flag=True, help="With sizes and weights, also if this is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="The table as JSON, for machines.")
def models(pattern: str | None, layers: bool, as_table: bool, as_json: bool) -> None:
    """List the models that --model takes; all, or those that match PATTERN, such as 'convnext*', or contain it.

    On a terminal with their parameters, the size of their images and the tags of their pretrained weights, else their
    names alone. With --layers, PATTERN is the name of one model, or FILE.py:FACTORY. No weights are needed.
    """
    if layers:
        if not pattern:
            raise UserError("--layers needs the name of a model.", "Such as: ddp-ft models timm/resnet18 --layers")
        print_result("\n".join(describe(pattern)))
        return
    names = find(pattern or "*")
    if as_json:
        print_result(json_text(facts(names)))
    elif as_table or sys.stdout.isatty():
        _print_table(facts(names))
    else:
        print_result("\n".join(names))


def facts(names: Collection[str]) -> list[dict[str, Any]]:
    """The facts about the models of these full names; models that differ in their weights alone are one.

    {"name", "parameters" (None: there are too many models to build), "input" ([height, width] or None), "weights":
    {tag: [height, width]}}, with the tags that are among the names.
    """
    from ddp_ft.models.libraries.registry import get_library

    groups: dict[str, set[str]] = {}
    for name in names:
        base, _, tag = name.partition(".")
        groups.setdefault(base, set()).update({tag} - {""})
    rows = []
    for base, tags in groups.items():
        key, _, inner = base.partition("/")
        library = get_library(key)
        sizes = library.input_sizes(inner)
        rows.append({
            "name": base,
            "parameters": library.parameters(inner, may_build=len(groups) <= _BUILT),
            "input": sizes.get(""),
            "weights": {tag: size for tag, size in sizes.items() if tag in tags},
        })  # fmt: skip
    return rows


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        Column("model", no_wrap=True), Column("parameters", justify="right", no_wrap=True),
        Column("input", no_wrap=True), "pretrained weights", box=SIMPLE, pad_edge=False,
    )  # fmt: skip
    for row in rows:
        size = " x ".join(map(str, row["input"] or ()))
        size_text = "" if row["parameters"] is None else count(row["parameters"])
        table.add_row(row["name"], size_text, size, " ".join(row["weights"]) or "none")
    Console(markup=False, emoji=False).print(table)
    check_printed()
    if any(row["parameters"] is None for row in rows):
        print_result(f"timm's models are built to count their parameters, which is done for {_BUILT} at most.")


def all_names() -> list[str]:
    """All full names, kept for the completion of shells."""
    from ddp_ft.models import model_names

    names = model_names()
    store_names(names)
    return names


def find(pattern: str) -> list[str]:
    """The full names that match, with or without their library and tag, or that contain a text without * or ?.

    UserError if there are none.
    """
    known = all_names()
    found = [name for name in known if any(fnmatchcase(form, pattern) for form in _forms(name))]
    if not found and not set("*?[") & set(pattern):
        found = [name for name in known if pattern.lower() in name.lower()]
    if not found:
        plain = {form for name in known for form in _forms(name) if "." not in form}
        hint = nearest(pattern.strip("*"), sorted(plain)) or "Use * for any text, such as 'resnet*'."
        raise UserError(f"No model matches '{pattern}'.", hint)
    return found


def _forms(name: str) -> list[str]:
    bare = name.partition("/")[2]
    return [name, name.partition(".")[0], bare, bare.partition(".")[0]]


def describe(name: str) -> list[str]:
    """The lines that describe a model's stages and blocks."""
    from ddp_ft.models.blocks import block_depths, stages

    module, head = _build(name)
    sizes = {each: parameter.numel() for each, parameter in module.named_parameters()}
    depths, known = block_depths(module, head), stages(module, head)
    body = sum(size for each, size in sizes.items() if each not in head)
    lines = [
        f"{name}: {body:,} parameters and the head",
        *textwrap.wrap(
            f"--freeze stages:K freezes the stem and the first K of {len(known) - 1} stages; 'frozen' is the share "
            "that this is of all parameters but the head's. --layer-decay goes by depth.",
            _WIDTH,
        ),
        "",
        _COLUMNS.format("K", "depth", "parameters", "frozen", "names"),
    ]
    frozen = 0
    for number, names in enumerate(known):
        in_stage = sorted({depths[each] for each in names})
        for depth in in_stage:
            block = [each for each in names if depths[each] == depth]
            size = sum(sizes[each] for each in block)
            frozen += size
            label, share = (str(number), f"{frozen / body:.1%}") if depth == in_stage[-1] else ("", "")
            lines += _rows(label, depth, size, share, _outline(module, block))
    lines += _rows("head", max(depths.values()), sum(sizes[each] for each in head), "", _outline(module, head))
    return [*lines, "", *_classes(module)]


def _build(name: str) -> "tuple[nn.Module, Collection[str]]":
    from ddp_ft.models.build import build_model
    from ddp_ft.models.introspection import build_shapes

    heads = []

    def create() -> "nn.Module":
        built = build_model(name, _OUTPUTS)
        heads.append(built.head)
        return built.module

    return build_shapes(create), heads[-1]


def _rows(label: str, depth: int, size: int, share: str, outline: Iterator[str]) -> Iterator[str]:
    yield _COLUMNS.format(label, depth, f"{size:,}", share, next(outline))
    yield from (_COLUMNS.format("", "", "", "", each) for each in outline)


def _outline(module: "nn.Module", names: Collection[str], path: str = "") -> Iterator[str]:
    """The largest modules that hold only these parameters, with their classes, and the remaining parameters."""
    own = [name for name, _ in module.named_parameters(path)]
    if path and own and set(own).issubset(names):
        kind = f"({type(module).__name__})"
        yield from [f"{path} {kind}"] if len(path) + len(kind) < _LONGEST else [path, f"  {kind}"]
        return
    yield from (name for name, _ in module.named_parameters(path, recurse=False) if name in names)
    for name, child in module.named_children():
        yield from _outline(child, names, f"{path}.{name}" if path else name)


def _classes(module: "nn.Module") -> list[str]:
    """The number of parameters that type:CLASS freezes, for all classes with parameters of their own."""
    kinds = {type(each) for each in module.modules() if next(each.parameters(recurse=False), None) is not None}
    counts: Counter[str] = Counter()
    for kind in kinds:
        inside = {p for each in module.modules() if isinstance(each, kind) for p in each.parameters()}
        counts[kind.__name__] += sum(parameter.numel() for parameter in inside)
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    return textwrap.wrap(f"--freeze type:CLASS, and the parameters that it freezes: {listed}", _WIDTH)
