"""Whether all ranks see what one has written: files of a network file system show up late."""

import os
import time
from pathlib import Path

# How long files written by rank 0 may take to show up on other nodes (attribute caches of network file systems).
SHARED_FOLDER_PATIENCE = 5.0


def wait_for(file: Path, content: str = "", seconds: float = SHARED_FOLDER_PATIENCE) -> bool:
    """Whether the file that another rank wrote is here with that content, or is within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (file.is_file() and file.read_text() == content):
        if time.monotonic() > deadline:
            return False
        if file.parent.is_dir():
            os.scandir(file.parent).close()  # refreshes the cache of a network file system
        time.sleep(0.1)
    return True
