"""RUN/logs/rank_N.txt: the messages of each rank, also of those that print nothing on the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddp_ft.errors import UserError

FOLDER = "logs"
LOGGER = logging.getLogger("ddp_ft")
LOGGER.propagate = False  # a library's root logger would print everything once more
LOGGER.addHandler(logging.NullHandler())


class _File(logging.FileHandler):
    """A handler that prints nothing itself when the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Lose the record and continue."""


@contextmanager
def logging_to(run: Path, rank: int) -> Iterator[None]:
    """Append this rank's messages to its log within the block, and the error that ends the block (with a traceback
    unless it is a UserError). Without a log if the file cannot be opened."""
    try:
        (run / FOLDER).mkdir(exist_ok=True)
        handler = _File(run / FOLDER / f"rank_{rank}.txt", encoding="utf-8", errors="backslashreplace")
    except OSError:
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    except UserError as error:
        LOGGER.error(str(error))
        raise
    except BaseException as error:
        LOGGER.error("%s: %s", type(error).__name__, error, exc_info=True)
        raise
    finally:
        LOGGER.removeHandler(handler)
        with suppress(OSError):  # what it holds back does not fit on a full disk
            handler.close()
