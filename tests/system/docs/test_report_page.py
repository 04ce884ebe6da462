"""docs/report.md keeps its word: its commands run, and print what it says."""

import re
import shlex
from pathlib import Path

import pytest

from ddp_ft.cli.main import ddp_ft
from ddp_ft.config.schema import KEYS
from tests.support.finished import write_finished

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.strip().splitlines()
]
SENTENCE = re.search(r"^    (Validation set: .*)$", TEXT, flags=re.MULTILINE).group(1)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    write_finished(tmp_path / "runs/pets", samples=200, skill=1.5)
    write_finished(tmp_path / "runs/pets2", samples=200, skill=2.5, seed=1)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, pets, capsys):
    name, *words = shlex.split(command)
    assert name == "ddp-ft" and not ddp_ft.main(words, standalone_mode=False)
    said = capsys.readouterr().out
    written = re.search(r"^(?:Report|Comparison): (.*)$", said, flags=re.MULTILINE).group(1)
    assert "</html>" in Path(written).read_text(encoding="utf-8")
    if "pets2" in command:
        numbers = re.compile(r"\d+\.\d+")
        assert numbers.sub("N", SENTENCE).replace("p = N", "p < N") in numbers.sub("N", said).replace("p = N", "p < N")


def test_what_it_names_is_there():
    assert len(COMMANDS) == 3
    assert set(re.findall(r"--set ([\w.]+)=", TEXT)) == {"log.report"} <= set(KEYS)
