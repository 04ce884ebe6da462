"""Recipes and presets: where their settings stand among those that are given."""

import dataclasses

import pytest

from ddp_ft.config.keys import RECIPE
from ddp_ft.config.loading import AUGMENT_PRESETS, make_config, read_recipe, to_flat, to_yaml
from ddp_ft.config.schema import KEYS, RECIPES
from ddp_ft.config.yaml_texts import read_layer
from ddp_ft.errors import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_known_settings_of_the_kind_recipe(name):
    settings = read_recipe(name)
    assert {KEYS[path].kind for path in settings} == {RECIPE}
    given = to_flat(make_config({"recipe": name}))
    assert all(given[path] == settings[path] for path in settings)


def test_a_recipe_stands_below_the_layer_that_names_it():
    file, flags = {"optim.layer_decay": 0.5, "optim.lr": 0.3}, {"recipe": "lp_ft", "optim.lr": 0.2}
    config = make_config(file, flags)
    assert (config.optim.layer_decay, config.optim.lr) == (0.75, 0.2)
    assert make_config(flags, file).optim.layer_decay == 0.5
    assert make_config({"recipe": "lp_ft"}, {"probe.epochs": 3}).probe.epochs == 3


def test_the_last_recipe_that_is_named_counts():
    config = make_config({"recipe": "lp_ft"}, {"recipe": "full"})
    assert (config.recipe, config.probe.epochs, config.optim.layer_decay) == ("full", 0, 1.0)


def test_what_auto_became_stands_below_everything():
    config = make_config({"optim.head_lr_scale": 7}, recipe="lp_ft")
    assert (config.recipe, config.probe.epochs > 0, config.optim.head_lr_scale) == ("auto", True, 7.0)
    assert make_config({"recipe": "full"}, recipe="lp_ft").probe.epochs == 0
    assert make_config({"recipe": "full"}, {"recipe": "auto"}, recipe="lp_ft").probe.epochs > 0


def test_a_whole_configuration_is_read_back_as_it_was():
    layers = {"optim.betas": "0.9,0.98", "freeze.schedule": "{0: backbone, 2: none}", "augment.preset": "heavy"}
    config = make_config(layers, recipe="lp_ft")
    again = make_config(read_layer(to_yaml(config), KEYS), recipe="full")
    assert again == config


def test_a_preset_sets_what_is_not_given():
    config = make_config({"augment.preset": "heavy", "augment.flip": 0.25})
    assert (config.augment.mixup, config.augment.flip) == (0.2, 0.25)
    assert make_config({"augment.flip": 0.25}, {"augment.preset": "none"}).augment.flip == 0.0
    assert dataclasses.replace(make_config({"augment.preset": "light"}).augment) == make_config().augment
    keys = {path for path in KEYS if path.startswith("augment.")} - {"augment.preset", "augment.magnitude"}
    keys.remove("augment.transform")
    assert all(set(preset) == keys for preset in AUGMENT_PRESETS.values())


@pytest.mark.parametrize(
    ("path", "given", "value"),
    [
        ("optim.betas", [0.9, 0.5], (0.9, 0.5)),
        ("optim.betas", "0.9,0.5", (0.9, 0.5)),
        ("loss.class_weights", [1, 2.5], "1,2.5"),
        ("freeze.schedule", {0: "backbone", 1: "none"}, {"0": "backbone", "1": "none"}),
    ],
)
def test_lists_and_mappings(path, given, value):
    section, name = path.split(".")
    assert getattr(getattr(make_config({path: given}), section), name) == value


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("optim.betas", [0.9, 1.5], "a list of numbers"),
        ("optim.betas", "a,b", "a list of numbers"),
        ("schedule.milestones", [float("nan")], "a list of numbers"),
        ("freeze.schedule", "backbone", "a mapping"),
        ("optim.lr", {"a": 1}, "a number"),
        ("optim.weight_decay", float("nan"), "a number"),
        ("recipe", "lpft", "lp_ft"),
    ],
)
def test_bad_values_say_what_would_do(path, given, expected):
    with pytest.raises(UserError, match=expected):
        make_config({path: given})
