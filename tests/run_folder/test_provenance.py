"""What provenance.json says of a start, and what it keeps to itself."""

import json
import subprocess

import torch

from ddp_ft.distributed.world import World
from ddp_ft.run_folder.provenance import MOST_STARTS, command_words, git_state, read_starts, record_start

WORLD = World(0, 1, 0, torch.device("cpu"))


def test_secrets_are_hidden_and_the_rest_is_not():
    words = [
        "/home/me/bin/python",
        "-m",
        "ddp_ft.train",
        "--lr",
        "1e-3",
        "--hub-token",
        "abc",
        "--set",
        "x.api_key=a=b",
    ]
    words += ["--weights", "https://me:word@host/file", "--tokens", "--data", "a@b\n"]
    assert command_words(words) == [
        "python", "-m", "ddp_ft.train", "--lr", "1e-3", "--hub-token", "***", "--set", "x.api_key=***",
        "--weights", "https://***@host/file", "--tokens", "--data", "a@b\\n",
    ]  # fmt: skip


def test_each_start_is_one_entry(tmp_path):
    for number in range(3):
        record_start(tmp_path, WORLD)
        assert len(read_starts(tmp_path)) == number + 1
    newest = read_starts(tmp_path)[-1]
    assert newest["versions"]["torch"] == torch.__version__ and newest["nodes"] == 1 and newest["cores"] >= 1
    (tmp_path / "provenance.json").write_text(json.dumps([{"time": n} for n in range(MOST_STARTS)]))
    record_start(tmp_path, WORLD)
    starts = read_starts(tmp_path)
    assert len(starts) == MOST_STARTS and [each["time"] for each in starts[:2]] == [0, 2]


def test_a_damaged_file_is_no_hindrance(tmp_path):
    (tmp_path / "provenance.json").write_text('[{"time": 1')
    assert read_starts(tmp_path) == []
    record_start(tmp_path, WORLD)
    assert len(read_starts(tmp_path)) == 1


def test_the_commit_of_the_working_folder(tmp_path):
    assert git_state(tmp_path) is None
    (tmp_path / "file").write_text("a")
    git = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {**state, "changed": True}
