"""Names that are the same in another Unicode form: é is one character, or e and an accent, as macOS writes it."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress


def _form(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class KnownNames:
    """The places of names, found by any of their forms where that is not the form of several."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = {name: place for place, name in enumerate(names)}
        self._by_form: defaultdict[str, list[int]] = defaultdict(list)
        for name, place in self._exact.items():
            self._by_form[_form(name)].append(place)

    def place(self, name: str) -> int | None:
        """The place of that name; None if it is unknown."""
        if name in self._exact:
            return self._exact[name]
        places = self._by_form.get(_form(name), [])
        return places[0] if len(places) == 1 else None

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that have no place, sorted."""
        return sorted(name for name in names if self.place(name) is None)

    def alike(self) -> list[str]:
        """The names that differ from another one only in their form."""
        return [name for name in self._exact if len(self._by_form[_form(name)]) > 1]


class NamesOnDisk:
    """Paths below a folder, as they are written on the disk; each folder on their way is read at most once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._entries: dict[str, dict[str, list[str]]] = {}

    def find(self, path: str) -> str:
        """The path of what is there; the same if it is there as given, or if nothing or several things may be meant."""
        if path.isascii() or os.path.lexists(os.path.join(self.root, path)):  # noqa: PTH118  (a Path takes longer)
            return path
        found = "/" if path.startswith("/") else ""
        for part in path.split("/"):
            place = os.path.join(self.root, found)  # noqa: PTH118
            names = [part] if os.path.lexists(os.path.join(place, part)) else self._forms(place).get(_form(part), [])  # noqa: PTH118
            if len(names) != 1:
                return path
            found = os.path.join(found, names[0])  # noqa: PTH118
        return found

    def _forms(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._entries:
            known = self._entries[folder] = {}
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    known.setdefault(_form(entry.name), []).append(entry.name)
        return self._entries[folder]
