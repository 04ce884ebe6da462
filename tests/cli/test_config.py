"""`ddp-ft config`: every key with all that is known of it, and recipes as files that --config takes."""

import dataclasses
import json
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ddp_ft.cli.config import allowed_values, config, details, shown_default
from ddp_ft.config.keys import Key
from ddp_ft.config.loading import make_config, parse_assignment, read_config_file, to_flat
from ddp_ft.config.schema import KEYS, RECIPES
from ddp_ft.errors import UserError


def shown(*arguments):
    outcome = CliRunner().invoke(config, list(arguments), catch_exceptions=False)
    assert outcome.exit_code == 0
    return outcome.output


def refused(*arguments):
    with pytest.raises(UserError) as caught:
        config.main(list(arguments), standalone_mode=False)
    return str(caught.value)


def make_key(**changes):
    plain = Key("a.b", float, False, 0.5, "Help.")
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def listed():
    return shown("--list")


@pytest.mark.parametrize("path", KEYS)
def test_the_list_has_every_key_with_its_facts(listed, path):
    key = KEYS[path]
    lines = listed.partition("Kinds of keys")[0].splitlines()
    [place] = [number for number, line in enumerate(lines) if f"{line} ".startswith(f"  {path} ")]
    facts = lines[place].removeprefix(f"  {path}").split("  ")
    assert [fact.strip() for fact in facts if fact] == [shown_default(key), key.kind, *([key.flag] if key.flag else [])]
    end = next(number for number in range(place + 1, len(lines)) if not lines[number].startswith(" " * 6))
    assert " ".join(" ".join(lines[place + 1 : end]).split()) == f"{key.help} [{allowed_values(key)}]"


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("200", 100)])
def test_the_list_fits_the_terminal(monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    lengths = [len(line) for line in shown("--list").splitlines()]
    assert widest - 15 < max(lengths) <= widest


def test_a_pipe_gets_plain_text(listed):
    assert "\x1b" not in listed
    coloured = CliRunner().invoke(config, ["optim.lr"], color=True).output
    assert "\x1b[1moptim.lr" in coloured


def test_json_is_the_whole_schema():
    rows = {row["key"]: row for row in json.loads(shown("--list", "--json"))}
    assert list(rows) == list(KEYS)
    for path, key in KEYS.items():
        row = rows[path]
        assert row["choices"] == (None if key.choices is None else list(key.choices))
        names = ("default", "optional", "low", "above", "high", "kind", "flag", "help")
        assert {name: row[name] for name in names} == {name: getattr(key, name) for name in names}
    assert rows["optim.lr"]["type"] == "float" and rows["data.path"]["type"] == "path"


def test_one_key():
    text = shown("data.val_split")
    assert KEYS["data.val_split"].help in text
    for fact in ("0.15", "number, >0, <=0.9", "recipe", "--val-split"):
        assert fact in text
    assert "--set log.every_steps=VALUE" in shown("log.every_steps")
    assert json.loads(shown("data.val_split", "--json"))["high"] == 0.9


@pytest.mark.parametrize("path", KEYS)
def test_examples_are_values_that_the_key_takes(path):
    row = next(line for line in details(KEYS[path]).splitlines() if line.strip().startswith("example"))
    words = shlex.split(row)[1:]
    layer = parse_assignment(words[1]) if words[0] == "--set" else {path: words[1]}
    assert words[0] in ("--set", KEYS[path].flag) and list(layer) == [path]
    value = to_flat(make_config(layer))[path]
    assert value is not None or KEYS[path].default is None


def test_one_section():
    names = [line.split()[0] for line in shown("ema").splitlines() if line.startswith("  ema.")]
    assert names == [path for path in KEYS if path.startswith("ema.")]
    assert len(json.loads(shown("ema", "--json"))) == len(names)


def test_how_values_and_defaults_read():
    assert allowed_values(make_key(type=int, low=0, high=2**31 - 1)) == "whole number, >=0, <=2147483647"
    assert allowed_values(make_key(type=str, choices=("a", "b"))) == "one of a, b"
    assert shown_default(make_key(default=1e-05)) == "1e-05"
    assert shown_default(make_key(default=False, type=bool)) == "false"
    assert shown_default(make_key(default=None, optional=True, null="auto")) == "auto"
    assert shown_default(make_key(default=None, optional=True)) == "none"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_file_that_config_takes(tmp_path, name):
    (tmp_path / "recipe.yaml").write_text(shown("--recipe", name))
    settings = read_config_file(tmp_path / "recipe.yaml")
    assert settings
    given, wanted = to_flat(make_config(settings)), to_flat(make_config({}, recipe=name))
    assert given == wanted
    assert json.loads(shown("--recipe", name, "--json"))


def test_recipes_have_a_line_each():
    lines = dict(line.split(maxsplit=1) for line in shown("--recipes").splitlines())
    assert list(lines) == list(RECIPES)
    assert all(line.endswith(".") and not line.startswith("#") for line in lines.values())
    assert json.loads(shown("--recipes", "--json")) == lines


def test_typos_name_what_is_near():
    assert "optim.lr" in refused("optim.rl")
    assert "optim.lr" in refused("lr")
    assert "lp_ft" in refused("--recipe", "lpft")
    assert all(name in refused("--recipe", "xyz") for name in RECIPES)
    assert "chooses" in refused("--recipe", "auto")


@pytest.mark.parametrize("arguments", [[], ["--json"], ["optim.lr", "--list"], ["--recipes", "--recipe", "full"]])
def test_one_thing_at_a_time(arguments):
    assert "--list" in refused(*arguments)


def test_exit_code_of_a_mistake():
    command = [sys.executable, "-c", "from ddp_ft.cli.main import main; main()", "config", "optim.rl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and "optim.lr" in done.stderr and "Traceback" not in done.stderr


def test_explain_is_the_key_alone():
    said = [CliRunner().invoke(config, arguments).output for arguments in (["optim.lr"], ["--explain", "optim.lr"])]
    assert said[0] == said[1] and "default" in said[0]
    with pytest.raises(UserError, match="several of them"):
        config.main(["optim.lr", "--explain", "optim.name"], standalone_mode=False)
