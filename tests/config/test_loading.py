"""The configuration: layers, checks, and the way to YAML and back."""

import pytest

from ddp_ft.config.keys import LENGTH, MACHINE, RECIPE  # fmt: skip
from ddp_ft.config.loading import (  # fmt: skip
    find_key,
    make_config,
    parse_assignment,
    read_config_file,
    to_flat,
    to_yaml,
)
from ddp_ft.config.schema import KEYS  # fmt: skip
from ddp_ft.config.values import parse_value
from ddp_ft.errors import UserError


def test_later_layers_win():
    config = make_config({"optim.lr": 0.1, "seed": 1}, {"optim.lr": "0.2"})
    assert (config.optim.lr, config.seed, config.train.batch_size) == (0.2, 1, 32)


def test_yaml_round_trip_repeats_every_key(tmp_path):
    config = make_config({"data.path": "x y", "optim.lr": "3e-4", "train.micro_batch": 7, "data.workers": "auto"})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert make_config(read_config_file(file)) == config
    assert set(to_flat(config)) == set(KEYS)


@pytest.mark.parametrize(
    ("assignment", "fragments"),
    [
        ("optim.learning_rate=1", ["Unknown configuration key", "Here that is --lr."]),
        ("optim.lrr=1", ["Unknown configuration key 'optim.lrr'", "optim.lr"]),
        ("lr=1", ["Unknown", "optim.lr"]),
        ("optim.lr=-1", ["--lr (optim.lr)", "-1", "above 0"]),
        ("optim.lr=nan", ["nan"]),
        ("train.epochs=1.5", ["1.5", "whole number", "at least 1"]),
        ("train.batch_size=", ["needs a value"]),
        ("compute.precision=fp15", ["one of auto, fp32, bf16, fp16", "fp16"]),
        ("log.silence=[steps,weight]", ["some of job-time, ", "weights"]),
        ("train.epochs=[1]", ["whole number"]),
        ("epochs", ["key.path=value"]),
    ],
)
def test_bad_assignments_say_what_was_expected(assignment, fragments):
    with pytest.raises(UserError) as caught:
        make_config(parse_assignment(assignment))
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_numbers_in_yaml_notation_and_in_python_notation():
    assert make_config(parse_assignment("optim.lr=1e-4")).optim.lr == 1e-4  # a text in YAML 1.1
    assert make_config(parse_assignment("optim.lr=2")).optim.lr == 2.0


@pytest.mark.parametrize("text", ["auto", "none", "null"])
def test_optional_keys_can_be_unset(text):
    assert parse_value(find_key("train.micro_batch"), text) is None


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("- 1", "no mapping"), ("a: [", "not YAML"), ("optim:\n  lrr: 1", "Unknown"), (None, "cannot be read")],
)
def test_bad_files(tmp_path, content, fragment):
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=fragment):
        make_config(read_config_file(file))


def test_every_key_has_help_and_a_kind():
    for key in KEYS.values():
        assert key.help.endswith("."), key.path
        assert key.kind in (RECIPE, MACHINE, LENGTH)


def test_flags_are_few_and_unique():
    flags = [key.flag for key in KEYS.values() if key.flag]
    assert len(flags) == len(set(flags)) <= 40
