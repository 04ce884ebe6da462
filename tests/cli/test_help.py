"""The help of commands with many options."""

import pytest
from click.testing import CliRunner

from ddp_ft.cli.help import GROUPS
from ddp_ft.config.schema import KEYS
from ddp_ft.doctor import doctor
from ddp_ft.tasks.metric_table import METRICS
from ddp_ft.train import train


def help_of(command) -> str:
    return CliRunner().invoke(command, ["--help"], terminal_width=80).output


def test_each_option_of_train_is_there_once_and_the_usual_ones_first() -> None:
    lines = [line.split()[0] for line in help_of(train).splitlines() if line.startswith("  --")]
    assert sorted(lines) == sorted({option.opts[0] for option in train.params} | {"--help"})
    assert lines[:3] == ["--data", "--model", "--weights"]
    grouped = [f"--{name}" for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(set(grouped)) and set(grouped) <= set(lines)


def test_it_is_two_screens_at_most() -> None:
    text = help_of(train)
    assert len(text.splitlines()) <= 110 and max(map(len, text.splitlines())) <= 80
    assert len(help_of(doctor).splitlines()) <= 55


def test_doctor_repeats_the_usual_options_alone() -> None:
    text = help_of(doctor)
    assert "--data" in text and "--quick" in text and "--mixup" not in text and "ddp-ft train --help" in text


def test_choices_stand_in_the_text() -> None:
    assert "--schedule NAME" in help_of(train) and "onecycle, plateau." in " ".join(help_of(train).split())


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_named(name: str) -> None:
    assert name in KEYS["eval.metric"].help or name.upper() in KEYS["eval.metric"].help


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--set", "optim.lr", "3"], "--set optim.lr=3?"), (["data=pets", "epochs=3"], "--data pets?"),
        (["imgsz=64"], "--image-size."), (["optim.lr=3"], "--set optim.lr=3?"), ([__file__], f"--data {__file__}?"),
        (["nowhere"], "nowhere belongs to no option.\n"),
    ],
)  # fmt: skip
def test_words_that_belong_to_no_option(words: list[str], answer: str) -> None:
    outcome = CliRunner().invoke(train, words)
    assert outcome.exit_code == 2 and f"{answer}\n" in f"{outcome.output}\n"
