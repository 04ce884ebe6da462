"""What other tools call options and values: each answer names something that exists."""

import pytest

from ddp_ft.config.forms import LOSSES
from ddp_ft.config.schema import KEYS
from ddp_ft.config.synonyms import _FLAGS, _VALUES, flag_answer, named_options, value_answer
from ddp_ft.predict import predict
from ddp_ft.tasks.metric_table import METRICS
from ddp_ft.train import train

OPTIONS = {name for command in (train, predict) for each in command.params for name in each.opts}


def test_each_answer_names_options_and_keys_that_exist() -> None:
    for ours in _FLAGS:
        for name in named_options(f"Here that is {ours}."):
            assert name in OPTIONS | KEYS.keys(), ours


def test_no_name_has_two_answers_or_is_an_option_here() -> None:
    names = [name for line in _FLAGS.values() for name in line.split()]
    assert sorted(names) == sorted(set(names))
    of_train = {name.lstrip("-") for each in train.params for name in each.opts}
    assert not of_train & set(names)


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


def test_values() -> None:
    assert value_answer("loss.name", "CE") == "Here that is cross_entropy."
    assert value_answer("compute.device", "gpu") == "Here that is cuda."
    assert value_answer("data.path", "gpu") == value_answer("compute.device", "tpu") == ""
