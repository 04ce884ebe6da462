"""timm's models from a folder or a hub: what config.json says is built, prepared for, and stored without the folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec, load_weights
from ddp_ft.models.libraries.registry import resolve

OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "input_size": [3, 96, 96], "fixed_input_size": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as timm pushes it to a hub, of another image size and other values than its architecture's."""
    torch.manual_seed(3)
    place: Path = tmp_path_factory.mktemp("hub") / "own"
    save_for_hf(timm.create_model("test_vit", num_classes=7, img_size=96), str(place), model_args={"img_size": 96})
    change(place, pretrained_cfg=OWN)
    return place


def change(folder: Path, **parts: dict[str, Any]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **{name: {**config.get(name, {}), **part} for name, part in parts.items()}}))


@pytest.mark.parametrize("form", ["local-dir:{}", "timm/local_dir:{}"])
def test_a_folder_is_built_loaded_and_stored_as_its_architecture(folder: Path, form: str) -> None:
    name = form.format(folder)
    built = build_model(name, 7)
    report = load_weights(built, name, "pretrained")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert set(report.loaded) == set(state) and str(folder) in report.source
    assert all(torch.equal(tensor, state[key]) for key, tensor in built.module.state_dict().items())
    assert built.processor.shape() == (96, 96) and built.processor.to_mapping()["mean"] == [0.1, 0.2, 0.3]
    assert str(folder) not in str(built.spec)
    create_from_spec(built.spec).load_state_dict(state)  # the folder may be gone by then


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy"):  # which refuses at once, with and without a network
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for name in ("hf-hub:owner/name", "timm/hf-hub:owner/name"):
        with pytest.raises(UserError, match=r"could not be fetched: no connection"):
            resolve(name)
    with pytest.raises(UserError, match=r"there is no .*config\.json"):
        resolve(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"architecture": 3}', '{"architecture": "nix", "pretrained_cfg": {}}']
)
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="local-dir:"):
        resolve(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_what_an_architecture_has_by_itself_is_no_argument_of_its_own(architecture: str, tmp_path: Path) -> None:
    network = timm.create_model(architecture, num_classes=7)
    pool = getattr(network, "global_pool", "avg")
    by_timm = {"num_classes": 7, "in_chans": 3, "global_pool": pool if isinstance(pool, str) else "avg"}
    save_for_hf(network, str(tmp_path), model_args=by_timm)  # newer versions write them unasked
    assert set(build_model(f"local-dir:{tmp_path}", 3).spec["arguments"]) <= {"num_classes", "img_size"}


def test_arguments_that_no_model_json_may_have(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] |= {"class_token": False, "pretrained": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="class_token, pretrained"):
        build_model(f"local-dir:{tmp_path}", 3)
