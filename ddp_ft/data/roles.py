"""The roles of parts of the data, and the names of folders and values for them."""

import re
from collections.abc import Iterable

TRAIN, VAL, TEST = "train", "val", "test"
# All samples, of whatever part.
ALL = "all"
# The names to give; `role_of` knows more.
ROLE_NAMES = (TRAIN, VAL, TEST)
_STEMS = {
    "train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "validate": VAL, "dev": VAL,
    "test": TEST, "testing": TEST,
}  # fmt: skip
_ENDINGS = ("", "set", "data", "images", "image", "imgs", "split", "samples", "folder", "dir")
_ROLES = {stem + ending: role for stem, role in _STEMS.items() for ending in _ENDINGS}
_PLAIN = frozenset(("train", "val", "valid", "validation", "test"))
_BETWEEN_WORDS = re.compile(r"[-_. ]")
_BETWEEN_PARTS = re.compile(r"[-_. ()\d]+")
# Where all class folders hold the same ones these are no classes, though they might be elsewhere.
_SHORT = {"tr": TRAIN, "trn": TRAIN, "vl": VAL, "eval": VAL, "evaluation": VAL, "te": TEST, "tst": TEST}


def role_of(name: str) -> str:
    """The role that a folder or value of that name has, such as Training, test_set or valid; empty if none."""
    return _ROLES.get(_BETWEEN_WORDS.sub("", name.lower()), "")


def of_role(role: str, names: Iterable[str]) -> list[str]:
    """The names that have that role; a plain one, such as val, goes before others, such as dev."""
    found = [name for name in names if role_of(name) == role]
    return [name for name in found if name.lower() in _PLAIN] or found


def role_within(name: str) -> str:
    """The role that one of the name's words is about (seg_train, 2-test); empty if none is, or several are."""
    found = {role for word in _BETWEEN_PARTS.split(name.lower()) if (role := _ROLES.get(word) or _SHORT.get(word))}
    return found.pop() if len(found) == 1 else ""
