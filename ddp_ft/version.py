"""The version of this package, and those of installed ones."""

from collections.abc import Iterable

__version__ = "0.1.0"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed, by name."""
    from importlib import metadata  # takes a tenth of the time of --help

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
