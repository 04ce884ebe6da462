"""What other tools call options and values: each answer names something that exists."""

import pytest

from ddp_ft.cli.main import COMMANDS
from ddp_ft.config.forms import LOSSES
from ddp_ft.config.schema import KEYS
from ddp_ft.config.synonyms import (
    _COMMANDS,
    _FLAGS,
    _OF_INPUTS,
    _OF_MODELS,
    _VALUES,
    flag_answer,
    named_options,
    value_answer,
)
from ddp_ft.predict import predict
from ddp_ft.tasks.metric_table import METRICS
from ddp_ft.train import train

OPTIONS = {name for command in (train, predict) for each in command.params for name in each.opts}


def test_each_answer_names_options_and_keys_that_exist() -> None:
    for ours in (*_FLAGS, *_OF_MODELS, *_OF_INPUTS):
        for name in named_options(f"Here that is {ours}."):
            assert name in OPTIONS | KEYS.keys(), ours


def test_no_name_has_two_answers_or_is_an_option_here() -> None:
    names = [name for line in _FLAGS.values() for name in line.split()]
    assert sorted(names) == sorted(set(names))
    of_train = {name.lstrip("-") for each in train.params for name in each.opts}
    assert not of_train & set(names)
    names = [name for table in (_OF_INPUTS, _OF_MODELS) for line in table.values() for name in line.split()]
    assert sorted(names) == sorted(set(names))
    of_predict = {name.lstrip("-") for each in predict.params for name in each.opts if name.startswith("-")}
    assert not of_predict & set(names)


def test_each_command_exists_and_has_names_of_its_own() -> None:
    assert {name for name in _COMMANDS if not name.startswith("--")} <= COMMANDS.keys()
    names = [name for line in _COMMANDS.values() for name in line.split()]
    assert sorted(names) == sorted(set(names)) and not COMMANDS.keys() & set(names)


def test_each_value_exists() -> None:
    known = {path: key.choices for path, key in KEYS.items()}
    known |= {"loss.name": LOSSES, "model.weights": ("pretrained", "none")}
    known["eval.metric"] = tuple(METRICS)
    for path, values in _VALUES.items():
        assert set(values) <= set(known[path] or ()), path


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("--gpus", "Here that is --processes N, or auto."), ("--learning_rate", "Here that is --lr."),
        ("--per-device-train-batch-size", "images of all processes"), ("--resume", "The same command goes on"),
        ("--nothing-like-it", ""),
    ],
)  # fmt: skip
def test_flags(given: str, answer: str) -> None:
    assert answer in flag_answer(given) and bool(answer) is bool(flag_answer(given))


@pytest.mark.parametrize(
    ("given", "command", "answer"),
    [
        ("--conf", "predict", "--threshold"), ("--batch", "evaluate", "--batch-size."), ("--batch", "train", "all pro"),
        ("--source", "predict", "arguments after RUN_OR_MODEL"), ("--source", "evaluate", "--data"),
        ("--save_images", "predict", "--show"), ("--run-dir", "evaluate", "first argument"),
    ],
)  # fmt: skip
def test_flags_of_commands_with_a_trained_model(given: str, command: str, answer: str) -> None:
    assert answer in flag_answer(given, command)


def test_values() -> None:
    assert value_answer("loss.name", "CE") == "Here that is cross_entropy."
    assert value_answer("compute.device", "gpu") == "Here that is cuda."
    assert value_answer("data.path", "gpu") == value_answer("compute.device", "tpu") == ""
