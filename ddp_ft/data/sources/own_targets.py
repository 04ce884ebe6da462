"""The targets of a data set of the user's own: classes, labels or numbers, by its attribute `targets` or its items."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_ft.config.tasks import TASKS
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, BadSample
from ddp_ft.data.roles import ROLE_NAMES
from ddp_ft.data.sources.own import OwnSource, dataset_of
from ddp_ft.errors import UserError, printable, shortened
from ddp_ft.plugins import running

EXPECTED = (
    "A target is a class (its name, or a number, of which an attribute `classes` has the names), a list of names of "
    "labels, or a number or list of numbers with a fraction; whole ones with --task regression."
)

_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class OwnTargets:
    """What the data sets have, by role: `values`, a list of str, int, float, or lists of such; `classes`, the training
    set's attribute, or ()."""

    reference: str
    values: Mapping[str, list[Any]]
    classes: tuple[str, ...]

    def kind(self, task: str) -> str:
        """The kind that `task` learns; for "auto" the one that the training set's targets look like."""
        if task in TASKS:
            return TASKS[task].kinds[0]
        known = {_looks(value) for value in next(iter(self.values.values()))}
        if len(known) != 1 or "" in known:
            shown = shortened([repr(value) for value in next(iter(self.values.values()))[:3]])
            raise UserError(f"--data {self.reference}: the targets are of no one kind, such as {shown}.", EXPECTED)
        return known.pop()

    def notes(self, kind: str, task: str) -> list[str]:
        """A note on whole numbers that were taken for classes without being asked to."""
        is_doubtful = kind == LABEL and task not in TASKS and not self.classes
        if not is_doubtful or isinstance(next(iter(self.values.values()))[0], str):
            return []
        return ["The targets, whole numbers, are taken as classes; if they are amounts: --task regression."]

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of a new model's outputs, from the training set."""
        values = next(iter(self.values.values()))
        if kind == NUMBERS:
            width = len(_as_list(values[0]))
            named = tuple(f"target{number}" for number in range(1, width + 1)) if width > 1 else ("target",)
            return self.classes if len(self.classes) == width else named
        found = set(self.classes) or {label for value in values for label in self._labels(value)}
        if odd := [name for name in found if not name or name.encode(errors="ignore").decode() != name]:
            raise UserError(f"--data {self.reference}: {printable(repr(odd[0]))} is no name of a class.", EXPECTED)
        if self.classes:
            return self.classes
        return tuple(sorted(found, key=int) if _are_numbers(found) else sorted(found))

    def numbered(self, role: str, kind: str, names: tuple[str, ...]) -> NDArray[Any]:
        """The targets of a role, as in LabelledSource. UserError for those that do not fit the kind or the names."""
        values = self.values[role]
        if kind == NUMBERS:
            return self._numbers(role, len(names))
        places = {name: number for number, name in enumerate(names)}
        labels = [self._labels(value) for value in values]
        if unknown := {label for each in labels for label in each} - places.keys():
            message = f"--data {self.reference}: {role} has classes that are not known: {shortened(sorted(unknown))}."
            raise UserError(message, f"Known: {shortened(names)}.")
        if kind == LABEL:
            if several := [row for row, each in enumerate(labels) if len(each) != 1]:
                message = f"--data {self.reference}: {role}[{several[0]}] has {len(labels[several[0]])} labels."
                raise UserError(message, f"For several labels of an image: --task multi-label. {EXPECTED}")
            return np.array([places[each[0]] for each in labels], np.int64)
        if kind != LABELS:
            raise UserError(f"--data {self.reference} has no targets of the kind '{kind}'.", EXPECTED)
        rows = np.zeros((len(labels), len(names)), np.float32)
        for row, each in zip(rows, labels, strict=True):
            row[[places[label] for label in each]] = 1
        return rows

    def _labels(self, value: Any) -> list[str]:
        """The names of a sample's classes."""
        if not isinstance(value, list):
            return [self._label(value)]
        if value and len(value) == len(self.classes) and all(each in (0, 1) for each in value):
            return [name for name, flag in zip(self.classes, value, strict=True) if flag]
        if not all(isinstance(each, str) for each in value):
            hint = f"A row of 0 and 1 needs as many names in the attribute `classes`. {EXPECTED}"
            raise UserError(f"--data {self.reference}: {printable(repr(value))} are no names of labels.", hint)
        return value

    def _label(self, value: Any) -> str:
        if isinstance(value, str) or (isinstance(value, int) and not self.classes):
            return str(value)
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return self.classes[value]
        what = f"; there are {len(self.classes)} classes" if isinstance(value, int) else ""
        raise UserError(f"--data {self.reference}: {printable(repr(value))} is no class{what}.", EXPECTED)

    def _numbers(self, role: str, width: int) -> NDArray[np.float32]:
        rows = [_as_list(value) for value in self.values[role]]
        for number, row in enumerate(rows):
            if len(row) != width or not all(map(_is_number, row)):
                message = f"--data {self.reference}: the target of {role}[{number}] is {printable(repr(row))}."
                raise UserError(message, f"Expected {width} finite number{'s' * (width > 1)} for each sample.")
        return np.array(rows, np.float32)


def read_targets(reference: str, roles: Sequence[str]) -> OwnTargets:
    """The targets of those of the roles that there are. Reads all samples of a data set without the attribute
    `targets`, after a line that says so."""
    found = {role: values for role in roles if (values := _values(reference, role)) is not None}
    first: Any = dataset_of(reference, next(iter(found))) if found else None
    classes = getattr(first, "classes", None)
    with running(f"--data {reference}: its attribute classes cannot be read", EXPECTED):
        names = () if classes is None else tuple(map(str, _plain(classes)))
    if len(set(names)) < len(names):
        raise UserError(f"--data {reference}: its classes have the same name twice: {shortened(names)}.")
    return OwnTargets(reference, found, names)


def _values(reference: str, role: str) -> list[Any] | None:
    dataset = dataset_of(reference, role)
    if dataset is None:
        return None
    count, given = len(dataset), getattr(dataset, "targets", None)
    if given is None:
        return _from_items(reference, role, count)
    with running(f"--data {reference}('{role}').targets cannot be read", EXPECTED):
        if isinstance(given, (Mapping, str)):
            raise TypeError(f"expected a list, not a {type(given).__name__}")
        values = [_plain(each) for each in _plain(given)]
    if len(values) != count:
        hint = "Its attribute `targets` has the target of each sample, in their order."
        raise UserError(f"--data {reference}('{role}') has {count} samples and {len(values)} targets.", hint)
    return values


def _from_items(reference: str, role: str, count: int) -> list[Any]:
    text = f"{reference}('{role}') has no attribute targets: all {count} samples are read for them."
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
    roles = np.full(count, ROLE_NAMES.index(role), np.uint8)
    source = OwnSource(reference, roles, np.arange(count), np.zeros(count))
    try:
        given = [source.item(index)[1] for index in range(count)]
    except BadSample as error:
        hint = "With an attribute `targets` samples that fail can be replaced: data.on_error=skip."
        raise UserError(f"--data {reference}: the target of {error} cannot be read.", hint) from error
    with running(f"--data {reference}('{role}'): the targets cannot be read", EXPECTED):
        return [_plain(each) for each in given]


def _plain(value: Any) -> Any:
    """Tensors, arrays and their numbers as Python's; other collections as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in (value if isinstance(value, (list, tuple)) else sorted(value))]
    return value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _looks(value: Any) -> str:
    if isinstance(value, (str, int)):
        return LABEL
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return LABELS
    is_number = isinstance(value, float) or (
        isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)
    )
    return NUMBERS if is_number else ""


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, also as float32."""
    return isinstance(value, (int, float)) and -_MOST <= value <= _MOST


def _are_numbers(names: set[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)
