"""Paths of options, files and array lines: ~ and $VAR as in a shell."""

from pathlib import Path

import click
import pytest

from ddp_ft.cli.main import COMMANDS, ddp_ft
from ddp_ft.cli.options import PathOf, data_settings, given_layers
from ddp_ft.config.loading import make_config
from ddp_ft.config.paths import expanded
from ddp_ft.config.schema import KEYS
from ddp_ft.errors import UserError
from ddp_ft.train import train

PLACES = [path for path, key in KEYS.items() if key.type is Path or key.names_file]


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("WHERE", "/disk")
    monkeypatch.setenv("NOTHING", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)


def test_home_and_variables():
    assert expanded("~/x") == "/home/me/x"
    assert expanded("~/x.py:make") == "/home/me/x.py:make"
    assert expanded("$WHERE/${WHERE}s/~") == "/disk//disks/~"
    assert expanded("a$/b~") == "a$/b~"


@pytest.mark.parametrize("text", ["$UNSET/x", "a/${UNSET}", "~nobody.at.all/x", "$NOTHING/x"])
def test_what_is_not_there_is_one_message(text):
    with pytest.raises(UserError, match=r"not set|no home|empty"):
        expanded(text)


def test_a_file_of_that_very_name_is_meant_itself(tmp_path):
    (tmp_path / "a$UNSET").touch()
    assert expanded("a$UNSET") == "a$UNSET"


@pytest.mark.parametrize("path", PLACES)
def test_every_key_that_may_name_a_file(path, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{path}: ~/x.py:A\n")
    flag = {path.replace(".", "__"): "~/x.py:A"}
    for given in ((None, flag, []), (None, {}, [f"{path}=~/x.py:A"]), (tmp_path / "c.yaml", {}, [])):
        [*_, found] = [layer[path] for layer in given_layers(*given) if path in layer]
        assert found == "/home/me/x.py:A"
    with pytest.raises(UserError, match=r"\$UNSET is not set"):
        given_layers(None, {}, [f"{path}=$UNSET/x"])


def test_settings_of_evaluate():
    assert data_settings(["data.target=$a"]) == {"data.target": "$a"}
    for text, hint in {"data.path=~/x": "--data", "data.workers=2": "--workers", "data.range=0,1": "keeps its"}.items():
        with pytest.raises(UserError, match=f"changes nothing here.\n.*{hint}"):
            data_settings([text])
    with pytest.raises(UserError, match=r"Known: data\.image"):
        data_settings(["data.target=a"], only=["data.image"])


def test_a_stored_path_is_not_read_again():
    assert make_config({"data.path": "/a$UNSET"}).data.path == Path("/a$UNSET")


def test_a_run_folder_is_below_home(capsys):
    words = ["--data", ".", "--model", "x", "--print-run-dir", "--run-dir=~/${WHERE}"]
    train.main(words, standalone_mode=False)
    assert capsys.readouterr().out == "/home/me/disk\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_path_of_a_command_is_expanded(name):
    command = ddp_ft.get_command(click.Context(ddp_ft), name)
    assert command is not None
    parameters = [each for each in command.params if isinstance(each.type, click.Path)]
    assert all(isinstance(each.type, PathOf) for each in parameters), parameters


@pytest.mark.parametrize("words", [["runs", ""], ["train", "--run-dir="], ["evaluate", "", "--data", "x"]])
def test_an_empty_path_is_not_the_working_folder(words):
    with pytest.raises(UserError, match="needs a path"):
        ddp_ft.main(words, standalone_mode=False)
