"""The command in a report starts a run with the processes that it had."""

import pytest

from ddp_ft.reporting.reproduce import start_command

WORDS = ["python", "-u", "-m", "ddp_ft.train", "--data", "my pets"]
TRAIN = "ddp_ft.train --data 'my pets'"


@pytest.mark.parametrize(
    ("start", "command"),
    [
        ({"command": WORDS, "world_size": 1, "launcher": "none"}, f"python -m {TRAIN}"),
        (
            {"command": [*WORDS, "--processes", "2"], "world_size": 2, "nodes": 1, "launcher": "torchrun"},
            f"python -m {TRAIN} --processes 2",
        ),
        (
            {"command": [*WORDS, "--processes", "auto"], "world_size": 4, "nodes": 1, "launcher": "torchrun"},
            f"python -m {TRAIN} --processes 4",
        ),
        (
            {"command": [*WORDS, "--processes=auto"], "world_size": 4, "nodes": 1, "launcher": "torchrun"},
            f"python -m {TRAIN} --processes=4",
        ),
        (
            {"command": WORDS, "world_size": 8, "nodes": 2, "launcher": "torchrun"},
            f"torchrun --nproc_per_node=4 --nnodes=2 -m {TRAIN}",
        ),
        ({"command": ["ddp-ft", "x"], "world_size": 1}, "ddp-ft x"),
        ({}, ""),
        ({"command": None, "world_size": "many", "nodes": []}, ""),
    ],
)
def test_the_command_has_the_processes(start, command):
    assert start_command(start) == command
