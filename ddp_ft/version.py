"""Versions of this package and of others."""

__version__ = "0.1.0"


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
