"""Code of the user's own, by name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_ft.errors import UserError
from ddp_ft.plugins import load_object


@pytest.fixture(autouse=True)
def _search_path() -> Iterator[None]:
    path, modules = sys.path.copy(), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_file_imports_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and within functions, wherever the command was started; and hides no module of Python's."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/neighbour_of_it.py").write_text("value = 3")
    (tmp_path / "code/late_neighbour.py").write_text("value = 4")
    (tmp_path / "code/cmd.py").write_text("value = 5")
    text = "from neighbour_of_it import value\ndef make():\n    import late_neighbour\n    return late_neighbour.value"
    (tmp_path / "code/net.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_object("code/net.py:value") == 3
    monkeypatch.chdir("/")
    assert load_object(f"{tmp_path}/code/net.py:make")() == 4
    import cmd

    assert hasattr(cmd, "Cmd")
    assert sys.path.count(str(tmp_path / "code")) == 1


def test_a_neighbour_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import not_beside_it")
    with pytest.raises(UserError, match="No module named 'not_beside_it'"):
        load_object(f"{tmp_path}/net.py:make")
