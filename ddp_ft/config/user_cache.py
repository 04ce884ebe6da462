"""The user's cache folder: its files may be deleted at any time, and are then made again."""

import os
from pathlib import Path

from ddp_ft.config.paths import path_of

FOLDER_VARIABLE = "DDP_FT_CACHE"


def cache_folder() -> Path | None:
    """$DDP_FT_CACHE, or ddp_ft in $XDG_CACHE_HOME or ~/.cache, there or not; None if $DDP_FT_CACHE is empty or there is
    no home folder."""
    if (given := os.environ.get(FOLDER_VARIABLE)) is not None:
        return path_of(given) if given else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddp_ft"
    except RuntimeError:
        return None
