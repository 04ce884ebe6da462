"""What people get wrong with `predict` and `evaluate` at first: each message names what to do instead."""

import shutil

import pytest

from ddp_ft.errors import UserError
from ddp_ft.evaluate import evaluate
from ddp_ft.predict import predict
from tests.support.trained import write_model


@pytest.fixture(scope="module")
def place(shapes, tmp_path_factory):
    """runs/pets, photos/one.png, and a folder."""
    root = tmp_path_factory.mktemp("mistakes")
    write_model(root / "runs/pets/best", 1)
    (root / "photos").mkdir()
    shutil.copy(shapes / "val/disc/10.png", root / "photos/one.png")
    (root / "folder.csv").mkdir()
    return root


MISTAKES = {
    "predict runs/pets https://example.com/one.png": "Addresses are not read",
    "predict runs/pets photos/oen.png": r"Did you mean photos/one\.png",
    "predict runs photos": "Name one of its runs: runs/pets",
    "predict runs/pest photos": "Did you mean runs/pets",
    "predict runs/pets/best/model.safetensors photos": "Name the run folder: runs/pets",
    "predict photos/one.png runs/pets": "The model is named first",
    "predict photos runs/pets": "Expected the run folder",
    "predict runs/pets photos --output folder.csv": "is a folder",
    "predict runs/pets photos --set data.target=x": r"Known: data\.image",
    "evaluate runs/pets photos": "Data: --data PATH",
    "evaluate runs/pets": "Name data: --data DATA",
    "evaluate runs/pets --set data.workers=2": "Here that is --workers",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_the_message_names_the_way(place, monkeypatch, line):
    monkeypatch.chdir(place)
    name, *words = line.split()
    with pytest.raises(UserError, match=MISTAKES[line]):
        {"predict": predict, "evaluate": evaluate}[name].main([*words, "--device", "cpu"], standalone_mode=False)
