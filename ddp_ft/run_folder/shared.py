"""Whether all ranks see what rank 0 writes to a folder: network file systems show new files late, local disks never."""

import os
import secrets
import time
from pathlib import Path

from ddp_ft.distributed.world import World

# How long files written by rank 0 may take to show up on other nodes (attribute caches of network file systems).
PATIENCE_SECONDS = 5.0


def put_token(folder: Path) -> str:
    """On rank 0: create a file that the other ranks look for; return its name. Raises OSError."""
    name = f".shared_{secrets.token_hex(8)}"
    (folder / name).touch()
    return name


def seen_by(world: World, token: Path) -> list[bool]:
    """Whether each rank sees the file that rank 0 created, by rank; then rank 0 removes it. The same on every rank.

    Collective. `token` is where this rank looks for it.
    """
    seen = world.gather(appears(token))
    found = world.from_main(lambda: seen or [])
    if world.is_main:
        token.unlink(missing_ok=True)
    return found


def appears(file: Path) -> bool:
    """Whether the file is there, or comes while a network file system may still hide it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        if file.parent.is_dir():
            os.scandir(file.parent).close()  # refreshes the cache of a network file system
        time.sleep(0.1)
    return True
