"""YAML without its surprises: texts as they stand, whether they look like numbers, dates or truth values to YAML."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from ddp_ft.config.keys import Key
from ddp_ft.errors import UserError, one_line, shortened

QUOTING = "Quote a text that the shell or YAML reads otherwise, such as '|' or '-'."
_TAG, _MERGE, _BLOCKS = "tag:yaml.org,2002:", "<<", ("|", ">")
_NULL = f"{_TAG}null"
_TEXTS = tuple(f"{_TAG}{kind}" for kind in ("str", "timestamp", "merge", "value"))


def read_mapping(text: str) -> dict[str, Any]:
    """The mapping that a YAML text is; its names are texts as they stand, as in JSON. ValueError for anything else."""
    node = _compose(text)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("it has no names and values")
    content: dict[str, Any] = _plain(node)
    return content


def read_document(text: str) -> Any:
    """What a YAML text holds; names of mappings are texts as they stand, as in JSON. ValueError if it is no YAML."""
    node = _compose(text)
    return None if node is None else _plain(node)


def read_layer(text: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    """A YAML file of nested sections by dotted names: the value of a key as text, or as YAML reads it if it is a list
    or a mapping. ValueError for what is no YAML; UserError, which continues "The file ...", for names that occur
    twice, and for a file of no mapping."""
    node = _compose(text)
    if not isinstance(node, yaml.MappingNode):
        raise UserError("holds no mapping of keys to values.", "Example:\noptim:\n  lr: 0.001")
    found = list(_flat(node, keys, ""))
    if twice := _repeated(name for name, _ in found):
        raise UserError(f"sets {shortened(twice)} twice.", "Leave one of them.")
    return dict(found)


def _compose(text: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(one_line(error)) from None
    return node


def _flat(node: yaml.MappingNode, keys: Mapping[str, Key], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in _pairs(node).items():
        path = f"{prefix}{name}"
        key = keys.get(path)
        if key is not None:
            yield path, _given(key, value)
        elif isinstance(value, yaml.MappingNode):
            yield from _flat(value, keys, f"{path}.")
        elif not (value.tag == _NULL and any(known.startswith(f"{path}.") for known in keys)):  # an empty section
            yield path, _plain(value)


def _given(key: Key, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode) or key.type is dict:
        return _plain(node)
    if node.style in _BLOCKS and not node.value.strip():
        raise UserError(f"has {key.path}: {node.style}, which YAML reads as a text on the lines below.", QUOTING)
    is_null = node.tag == _NULL and (key.optional or not node.value)
    return None if is_null else node.value


def _pairs(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    """The nodes of a mapping by name, with those of `<<: *other` below its own. ValueError if a name occurs twice."""
    if twice := _repeated(own for name, _ in node.value if (own := _name(name)) != _MERGE):
        raise ValueError(f"{shortened(twice)} is there twice, line {node.start_mark.line + 1} and below")
    yaml.SafeLoader("").flatten_mapping(node)
    return {_name(name): value for name, value in node.value}


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _name(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"a list or mapping in the place of a name, line {node.start_mark.line + 1}")
    return str(node.value)


def _plain(node: yaml.Node) -> Any:
    """As YAML's safe loader, but names of mappings and dates are texts, and nothing else than JSON has comes out."""
    try:
        return _constructed(node)
    except RecursionError:
        raise ValueError("it holds itself, or is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def _constructed(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {name: _constructed(value) for name, value in _pairs(node).items()}
    if isinstance(node, yaml.SequenceNode):
        return [_constructed(each) for each in node.value]
    if node.tag in _TEXTS:
        return node.value
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, bytes):
        raise ValueError(f"{node.tag} is no text, number or truth value")
    return value
