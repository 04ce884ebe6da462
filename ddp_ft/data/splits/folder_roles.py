"""Which folders of a data set are for training, validation and test; and whether its classes are what they seem."""

import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ddp_ft.config.data import DataConfig
from ddp_ft.data.roles import ROLE_NAMES, TEST, TRAIN, VAL, of_role, role_of, role_within
from ddp_ft.data.sources.scan import Listing, subfolders
from ddp_ft.errors import UserError, shortened

# The value of data.class_folders with which nothing is guessed.
TOP = "top"
_TAKE_ALL = f"--set data.class_folders={TOP}"
# Folders between the data's own and those of its parts, as in images/train beside labels/train.
_WRAPPERS = frozenset(("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "data", "dataset"))


def inner_root(config: DataConfig, root: Path) -> Path:
    """The folder that holds the parts: `root`, or the one in it that is called images or the like and has a training
    part, if `root` itself has none."""
    if config.class_folders == TOP:
        return root
    names = subfolders(root)
    if any(role_of(name) == TRAIN for name in names):
        return root
    inner = (root / name for name in names if name.lower() in _WRAPPERS)
    return next((each for each in inner if TRAIN in map(role_of, subfolders(each))), root)


def folders_by_role(config: DataConfig, root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folder of each role ("train", "val", "test"), and notes; without train/ the root is the training folder.

    UserError for two folders of a role, and for a part without one to train on.
    """
    names = subfolders(root)
    roles = {} if config.class_folders == TOP else _roles(root, names)
    if TRAIN not in roles:
        if lone := [name for name in roles.values() if subfolders(root / name)]:
            hint = f"Move the training class folders into {root}/train. If {lone[0]} is a class: {_TAKE_ALL}"
            others = [name for name in names if name not in roles.values()]
            alike = _with_folders_of(root, lone[0], others)
            if len(alike) == 1:
                move = shlex.join(["mv", str(root / alike[0]), str(root / TRAIN)])
                hint = f"If {alike[0]} is for training: {move}. If {lone[0]} is a class: {_TAKE_ALL}"
            raise UserError(f"{root} has {lone[0]}/ but no train/.", hint)
        return {TRAIN: root}, []
    ignored = [name for name in names if name not in roles.values()]
    notes = [f"Beside {roles[TRAIN]}/ these folders are ignored: {shortened(ignored)}."] if ignored else []
    notes += [_unused_part(root, roles, alike)] if (alike := _with_folders_of(root, roles[TRAIN], ignored)) else []
    folders = {role: _class_folders(root / name) for role, name in roles.items()}
    if TEST in folders and not subfolders(folders[TEST]):
        notes.append(f"{folders.pop(TEST)} has no class folders and is ignored.")
    return folders, notes


def part_of(config: DataConfig, root: Path, role: str) -> Path | None:
    """The folder of that role; None if there is none. UserError if there are two."""
    names = [] if config.class_folders == TOP else subfolders(root)
    found = of_role(role, names)
    if len(found) > 1:
        raise _two_of_a_role(root, found[0], found[1])
    return _class_folders(root / found[0]) if found else None


def _class_folders(part: Path) -> Path:
    """The folder that holds a part's class folders: `part`, or its only folder, if that is called images or the like
    and has folders."""
    names = subfolders(part)
    inner = part / names[0] if len(names) == 1 and names[0].lower() in _WRAPPERS else part
    return inner if subfolders(inner) else part


def _roles(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The folder of each role, in any case: Train/ and Val/ as classes would be nonsense."""
    found = {role: of_role(role, names) for role in ROLE_NAMES}
    for several in found.values():
        if len(several) > 1:
            raise _two_of_a_role(root, several[0], several[1])
    roles = {role: several[0] for role, several in found.items() if several}
    # A class may be called "train" (cars, trains, planes): then it holds images and not class folders.
    if TRAIN in roles and len(names) > len(roles) and not subfolders(root / roles[TRAIN]):
        return {}
    return roles


def _with_folders_of(root: Path, part: str, names: Sequence[str]) -> list[str]:
    """The folders that have the sub-folders of that part, or most of them."""
    wanted = set(subfolders(root / part))
    return [name for name in names if wanted and 2 * len(wanted & set(subfolders(root / name))) > len(wanted)]


def _unused_part(root: Path, roles: Mapping[str, str], names: Sequence[str]) -> str:
    free = [role for role in (VAL, TEST) if role not in roles]
    to_use = f": rename {names[0]} to {' or '.join(free)} to use it" if free else ""
    return f"{shortened(names)} in {root} has the class folders of {roles[TRAIN]}{to_use}."


def _two_of_a_role(root: Path, one: str, other: str) -> UserError:
    return UserError(f"{root} has both {one}/ and {other}/.", f"Move one of them out of {root}, or rename it.")


def check_meaning(part: Listing) -> None:
    """UserError where the class folders look like parts of the data: those with several sub-folders are at least half
    of them, and have most of these in common."""
    inner = {path: below for path, below in _inner_folders(part) if len(below) > 1}
    nested = list(inner)
    if len(nested) < max(2, len(part.classes) / 2):
        return
    common = set.intersection(*(inner[name] for name in nested))
    union = set().union(*(inner[name] for name in nested))
    if len(common) >= max(2, len(union) / 2):
        raise _ambiguous(part, nested, sorted(common))


def _inner_folders(part: Listing) -> Iterator[tuple[str, set[str]]]:
    """For each class folder its path and the folders in it; if there is one only, those in that one, and so on."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for folder in part.stamps:
        above, _, name = os.path.relpath(folder, part.folder).rpartition("/")
        found[above].add(name)
    for path in part.classes:
        while len(found[path]) == 1:
            path = f"{path}/{next(iter(found[path]))}"
        yield path, found[path]


def _ambiguous(part: Listing, nested: Sequence[str], common: Sequence[str]) -> UserError:
    below = shortened(common, 4)
    lines = [f"If {shortened(part.classes, 4)} are the classes: {_TAKE_ALL}"]
    if any(role_of(name) for name in common):
        wanted = " and ".join(f"{role_of(name) or name}/CLASS" for name in common[:3])
        lines.append(f"If each has parts of its own: move these into {wanted}.")
    elif moves := _moves(part.folder, nested):
        lines.append(f"If {below} are the classes: {moves}")
    else:
        lines.append(f"If {below} are the classes of each: --data {shlex.quote(str(part.folder / nested[0]))}")
    message = f"{part.folder}: are its folders classes? {shortened(nested, 4)} hold the same folders: {below}."
    return UserError(message, "\n".join(lines))


def _moves(root: Path, names: Sequence[str]) -> str:
    """The commands that rename folders such as seg_train; none if their names do not tell their roles apart."""
    roles = {role_within(name.partition("/")[0]): name for name in names}
    if len(roles) < len(names) or "" in roles or TRAIN not in roles:
        return ""
    pairs = [(str(root / roles[role]), str(root / role)) for role in ROLE_NAMES if role in roles]
    return " && ".join(shlex.join(["mv", *pair]) for pair in pairs)
