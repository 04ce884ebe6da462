"""The user's cache folder: what lies there may be deleted at any time, and costs but the time of making it again."""

import os
from pathlib import Path

FOLDER_VARIABLE = "DDP_FT_CACHE"


def cache_folder() -> Path | None:
    """$DDP_FT_CACHE, or ddp_ft in $XDG_CACHE_HOME or ~/.cache, there or not; None if the user wants none, or has none.

    An empty $DDP_FT_CACHE means that none is wanted.
    """
    if (given := os.environ.get(FOLDER_VARIABLE)) is not None:
        return Path(given) if given else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddp_ft"
    except RuntimeError:  # nobody's home
        return None
