"""What starts a node's ranks refuses before it starts any."""

import pytest

from ddp_ft.cli.node import node
from ddp_ft.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "two"], "--nodes two is neither"), (["--nodes", "0"], "--nodes 0 is"),
        (["--nodes", "4:1"], "--nodes 4:1 is"), (["--nodes", "1:4"], "1:4 nodes need --rendezvous"),
        (["--nodes", "2", "--rendezvous", "127.0.0.1:x"], r"did not meet at 127.0.0.1:x: .*port"),
    ],
)  # fmt: skip
def test_where_nobody_can_meet(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        node.main([*words, "--", "--data", "x"], standalone_mode=False)


def test_a_number_of_processes_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "all")
    with pytest.raises(UserError, match="NPROC_PER_NODE='all'"):
        node.main([], standalone_mode=False)
