"""The value of one key: from text, or what YAML made of it, to the key's type, checked against choices and range."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import Key
from ddp_ft.config.synonyms import value_answer
from ddp_ft.config.yaml_texts import QUOTING, read_mapping
from ddp_ft.errors import UserError, nearest, one_line

# As YAML 1.1 has them, so that --set and files of older versions keep their meaning.
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_UNSET = ("auto", "none", "null")
_QUOTES = ("'", '"')
# Code by name: 'file.py:attr' or 'pkg.mod:attr'.
_CODE = re.compile(r"[^:].*:[^:\s]+", re.DOTALL)


def given_text(key: Key, text: str) -> str | None:
    """What an option or `--set` gives for that key: a text as it stands, without a pair of quotes around it.

    None is no value: nothing after the =, and null (for others than texts ~ too) if the key may be left open.
    """
    if key.type is str and not key.choices and text != text.strip():
        return text
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in _QUOTES and bare[0] not in bare[1:-1]:
        return bare[1:-1]
    is_open = key.optional and (bare.lower() == "null" or (bare == "~" and key.type is not str))
    return None if is_open or not bare else bare


def parse_value(key: Key, given: Any) -> Any:
    """`given` (text, or what YAML made of it) as the key's type, checked against its choices and range."""
    if given is None or (key.optional and str(given).lower() in _UNSET):
        if key.optional:
            return None
        raise UserError(f"{_label(key)} needs a value ({_expected(key)}).", QUOTING if key.type is str else "")
    reason = ""
    try:
        value = _convert(key, given)
        if _allowed(key, value):
            return value
    except (ValueError, TypeError, OverflowError) as error:
        reason = f"As YAML: {one_line(error)}." if key.type is dict else ""
    if key.type is str and not key.choices and not isinstance(given, str):
        reason = QUOTING
    hint = value_answer(key.path, str(given)) or nearest(str(given), list(key.choices or ())) or reason
    raise UserError(f"{_label(key)} = {given!r} is not {_expected(key)}.", hint)


def _convert(key: Key, given: Any) -> Any:
    if key.type is bool:
        return _TRUTH[_word(given)]
    if key.type is dict:
        return _mapping(given)
    if key.words and str(given).lower() in key.words:
        return str(given).lower()
    if key.type is tuple:
        return tuple(float(each) for each in _parts(given))
    if key.lists and key.choices:
        return ",".join(_choice(key.choices, re.sub(r"[ _]", "-", str(each).strip())) for each in _parts(given))
    if isinstance(given, (list, tuple)) and key.lists:
        return ",".join(map(str, given))
    if key.choices:
        return given if given in key.former else _choice(key.choices, given)
    if isinstance(given, (bool, list, tuple, Mapping)) or (key.type is Path and not str(given)):
        raise TypeError(given)
    if key.type is int:
        return _whole(given)
    return _text(key, str(given)) if key.type is str else key.type(_home(str(given)) if key.type is Path else given)


def _text(key: Key, given: str) -> str:
    if key.lists and given.strip().startswith("["):
        return ",".join(map(str.strip, _parts(given)))
    return _home(given) if key.names_file else given


def _home(given: str) -> str:
    return os.path.expanduser(given)  # noqa: PTH111  (Path's raises an error of its own where there is no home)


def _word(given: Any) -> str:
    word = str(given).lower()
    if word not in _TRUTH:
        raise ValueError(given)
    return word


def _choice(choices: tuple[str, ...], given: Any) -> str:
    """The choice of that name, in whatever case; yes and off are true and false."""
    word = str(given).lower()
    return word if word in choices else str(_TRUTH.get(word, given)).lower()


def _mapping(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    return read_mapping(str(given))


def _parts(given: Any) -> list[Any]:
    """The items of a list, or of a text such as 1,2 or [1, 2]; at least one."""
    text = str(given).strip()
    for opening, closing in ("[]", "()"):
        if text.startswith(opening) and text.endswith(closing):
            text = text[1:-1]
    items = list(given) if isinstance(given, (list, tuple)) else text.split(",")
    if not items or any(isinstance(each, bool) for each in items):
        raise ValueError(given)
    return items


def _whole(given: Any) -> int:
    """Also 1e3 and 3.0; the digits count as they are: 010 is ten."""
    try:
        return int(given) if isinstance(given, str) else _exact(float(given))
    except ValueError:
        return _exact(float(given))


def _exact(number: float) -> int:
    if not number.is_integer():
        raise ValueError(number)
    return int(number)


def _allowed(key: Key, value: Any) -> bool:
    if key.choices is not None:
        known = (*key.choices, *key.former)
        return all(each in known for each in (value.split(",") if key.lists else [value]))
    if key.code:
        return _CODE.fullmatch(value) is not None
    if key.words and value in key.words:
        return True
    if key.type is tuple:
        return all(_in_range(key, each) for each in value)
    return key.type not in (int, float) or _in_range(key, value)


def _in_range(key: Key, value: float) -> bool:
    return (
        math.isfinite(value)
        and (key.low is None or value >= key.low)
        and (key.above is None or value > key.above)
        and (key.high is None or value <= key.high)
    )


def _label(key: Key) -> str:
    return f"{key.flag} ({key.path})" if key.flag else key.path


_TYPE_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path",
    tuple: "a list of numbers", dict: "a mapping such as {name: value}",
}  # fmt: skip


def _expected(key: Key) -> str:
    if key.choices:
        return f"{'some' if key.lists else 'one'} of {', '.join(key.choices)}"
    parts = [key.code or _TYPE_NAMES[key.type]]
    parts += [f"of at least {key.low:g}"] if key.low is not None else []
    parts += [f"above {key.above:g}"] if key.above is not None else []
    parts += [f"and at most {key.high:g}"] if key.high is not None else []
    return ", or ".join([" ".join(parts), *key.words, *([key.null] if key.optional else [])])
