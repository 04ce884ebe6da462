"""Models of a user's own file: what cannot be trained is said before a run, and a file that changed is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.models.build import build_model
from ddp_ft.models.introspection import Trial
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.models.rehearsal import rehearse
from ddp_ft.plugins import load_object
from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
from ddp_ft.tasks.registry import restore_task
from tests.support.runs import train_here

TRIAL = Trial(ImageProcessor(Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)), call_with_images)
Factory = Callable[[str], str]

BARE = "def make(num_classes): return Own()\nclass Own(nn.Module):"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("def make(num_classes): raise SystemExit(3)", r"make\(num_classes=3\) failed: SystemExit: 3"),
        ("def make(num_classes): raise KeyError('a')", r"failed: KeyError: 'a' \(.*\.py, line \d+\)"),
        (f"{BARE}\n    def __init__(self): self.size = 1", "no whole torch.nn.Module"),
        (f"{BARE}\n    def get_extra_state(self): return {{'a': 1}}", "other things than tensors: _extra_state"),
        (
            "def make(num_classes): return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))",
            "lazy layers.*weight",
        ),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--nope'])", "could not be imported: SystemExit: 2"),
        ("def make(num_classes): return 1", "returned a int"),
    ],
)
def test_factories_that_build_nothing(factory_file: Factory, body: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        build_model(factory_file(body), 3)


def test_a_mistake_in_a_forward_pass_has_its_line(factory_file: Factory) -> None:
    net = "class Net(nn.Linear):\n    def forward(self, x): return self.gone(x)\n"
    body = f"{net}def make(num_classes): return Net(3, num_classes)"
    built = build_model(factory_file(body), 3)
    with pytest.raises(UserError, match=r"AttributeError: .*'gone' \(.*\.py, line \d+\)"):
        rehearse(built.module, Trial(built.processor, built.call), "net", both_modes=True, may_differ=False)


def test_what_a_factory_prints_is_no_result(factory_file: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    body = (
        "def make(num_classes):\n    print('hello')\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))"
    )
    build_model(factory_file(body), 3)
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize("reference", [".:X", "../l:X", "a..b:X", "/:X", "..:X", "a b:X"])
def test_references_to_nothing(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "l.py").write_text("")
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"is no file that ends in \.py") as caught:
        load_object(reference)
    assert ("Did you mean ../l.py:X?" in caught.value.hint) == (reference == "../l:X")


class Own(nn.Module):
    """Adds what `more` gives for each image."""

    def __init__(self, more: nn.Module) -> None:
        super().__init__()
        self.head, self.more = nn.Linear(3, 3), more

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(images.mean((2, 3))) + self.more(images[:, 0, 0, 0].long() * 0).real
        return outputs


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.factor * numbers[:, None]


@pytest.mark.parametrize(
    ("more", "what"),
    [(nn.Embedding(4, 3, sparse=True), "sparse gradients"), (Complex(), "complex numbers.*more.factor")],
)
def test_parameters_that_cannot_be_trained(more: nn.Module, what: str) -> None:
    with pytest.raises(UserError, match=what):
        rehearse(Own(more), TRIAL, "own.py:make", True, may_differ=False)
    more.requires_grad_(False)
    assert rehearse(Own(more), TRIAL, "own.py:make", True, may_differ=False).unused == frozenset()


NET = "def make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear({}, num_classes){})"


def test_a_file_that_changed_since_the_training(factory_file: Factory, tmp_path: Path) -> None:
    built = build_model(factory_file(NET.format(12, "")), 3)
    task = restore_task("single-label", {"classes": ["a", "b", "c"]})
    described = describe_model(built.spec, TRIAL.processor, task, "abc", "fp32")
    save_model_folder(tmp_path / "model", built.module.state_dict(), described)
    load_trained(tmp_path / "model", torch.device("cpu"))
    factory_file(NET.format(12, ", nn.Tanh()"))
    with pytest.warns(UserWarning, match="own.py has changed since"):
        load_trained(tmp_path / "model", torch.device("cpu"))
    factory_file(NET.format(27, ""))
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"1\.weight is 3 x 12 there") as caught:
        load_trained(tmp_path / "model", torch.device("cpu"))
    assert "own.py has changed since" in caught.value.hint
    (tmp_path / "own.py").unlink()
    with pytest.raises(UserError, match="No such file") as caught:
        load_trained(tmp_path / "model", torch.device("cpu"))
    assert "own.py is not there" in caught.value.hint


def test_a_file_that_changed_since_the_last_start(factory_file: Factory, shapes: Path, tmp_path: Path) -> None:
    layers = "nn.AdaptiveAvgPool2d({}), nn.Flatten(), nn.Linear({}, num_classes)"
    net = f"def make(num_classes): return nn.Sequential({layers})"
    model = ("--model", factory_file(net.format(1, 3)), "--recipe", "full")
    train_here(shapes, tmp_path / "run", *model)
    factory_file(net.format(2, 12))
    with pytest.raises(UserError, match="3 x 3 there, and 3 x 12 here") as caught:
        train_here(shapes, tmp_path / "run", *model, "--extend", epochs=2)
    assert "own.py changed" in caught.value.hint
