"""What a run says at its start, as a whole."""

import re
from pathlib import Path

from tests.support import nets
from tests.support.runs import train_on

GOLDEN = Path(__file__).with_name("startup_table.txt")


def test_the_summary_at_the_start(shapes, tmp_path):
    """Like summary.txt, but for folders and what depends on the machine."""
    said = train_on(2, shapes, tmp_path / "run", "--dry-run", "--workers", "0", "--epochs", "30")
    for path, name in ((shapes, "DATA"), (tmp_path / "run", "RUN"), (nets.THIS_FILE, "nets.py")):
        said = said.replace(str(path), name)
    said = re.sub(r"\d+ threads?", "N threads", said)
    assert said == GOLDEN.read_text(encoding="utf-8"), said
