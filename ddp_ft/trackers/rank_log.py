"""RUN/logs/rank_N.txt: what each rank has to say, also those that are silent on the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddp_ft.errors import UserError

FOLDER = "logs"
LOGGER = logging.getLogger("ddp_ft")
LOGGER.propagate = False  # a root logger that some library set up would print all of it once more
LOGGER.addHandler(logging.NullHandler())


class _File(logging.FileHandler):
    """One that a full disk does not make speak of itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Nothing: the record is lost, and training goes on."""


@contextmanager
def logging_to(run: Path, rank: int) -> Iterator[None]:
    """Within the block this rank's log is appended to; so is the error that the block ends with, and its traceback
    unless it is the user's mistake. Where the file cannot be opened there is no log."""
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
        handler.close()
