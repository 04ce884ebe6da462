"""Runs on images of one and of five channels, to the end: training, its use, and what other programs get."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddp_ft
from ddp_ft.errors import UserError
from ddp_ft.export import export
from tests.support.runs import call_on, column, read, train_here, train_on

CONSTANT = ["--schedule", "constant", "--set", "schedule.warmup=0", "--lr", 0.01]
FIVE = ["--set", "data.channels=5", *CONSTANT]


@pytest.fixture(scope="module")
def bands(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes as arrays of 12 bits, H x W x 5."""
    folder = tmp_path_factory.mktemp("bands")
    for file in shapes.rglob("*.png"):
        pixels = np.asarray(Image.open(file)).astype(np.uint16) * 16
        there = folder / file.relative_to(shapes).with_suffix(".npy")
        there.parent.mkdir(parents=True, exist_ok=True)
        np.save(there, np.concatenate([pixels, 4080 - pixels[..., :2]], axis=2))
    return folder


@pytest.fixture(scope="module")
def run(bands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs in one process."""
    folder = tmp_path_factory.mktemp("run") / "r"
    train_here(bands, folder, *FIVE, "--set", "log.pictures=true", net="of_channels", epochs=2)
    return folder


def test_the_same_curve_at_any_number_of_processes(bands: Path, run: Path, tmp_path: Path) -> None:
    train_on(2, bands, tmp_path / "two", *FIVE, net="of_channels", epochs=2)
    for part in ("train", "val"):
        assert column(tmp_path / "two", "loss", part) == pytest.approx(column(run, "loss", part), rel=1e-4)
    described = [read(each, "best/model.json") for each in (run, tmp_path / "two")]
    assert described[0]["preprocessing"] == described[1]["preprocessing"]
    assert len(described[0]["preprocessing"]["mean"]) == described[0]["arguments"]["in_chans"] == 5


def test_a_run_that_goes_on_has_the_same_bits(bands: Path, run: Path, tmp_path: Path) -> None:
    for epochs in (1, 2):
        train_here(bands, tmp_path / "r", *FIVE, "--extend", net="of_channels", epochs=epochs)
    for file in ("best/model.safetensors", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "r" / file).read_bytes() == (run / file).read_bytes()


def test_its_use(bands: Path, run: Path, tmp_path: Path) -> None:
    """Evaluation, prediction and Python, of the same numbers."""
    assert read(run, "summary.json")["val"]["loss"] == pytest.approx(min(column(run, "loss", "val")))
    said = call_on(1, "ddp_ft.evaluate", run, "--data", bands, "--device", "cpu")
    assert f'"loss": {read(run, "summary.json")["val"]["loss"]}' in said
    file = next((bands / "val" / "disc").iterdir())
    model = ddp_ft.load(run, device="cpu")
    assert model(str(file)) == model(np.load(file))
    call_on(1, "ddp_ft.predict", run, bands / "val", "--output", tmp_path / "p.csv", "--device", "cpu")
    row = next(line for line in (tmp_path / "p.csv").read_text().splitlines() if file.name in line and "disc" in line)
    assert f"{model(str(file)).probability:.6f}" in row
    with pytest.raises(UserError, match="3 channels where 5 are expected"):
        model(np.zeros((40, 40, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "packed", [["torch_export", "m.pt2"], ["safetensors", "m"], ["onnx", "m.onnx", "--with-preprocessing"]]
)
def test_exports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: list[str]) -> None:
    form, name, *more = packed
    words = [str(run), "--format", form, "--output", str(tmp_path / name), *more]
    export.main(words, standalone_mode=False)
    assert "12 of 12 the same" in capsys.readouterr().out


def test_grey(shapes: Path, tmp_path: Path) -> None:
    """Photos become grey; a probe on stored features comes first."""
    probe = ["--set", "probe.epochs=2", "--set", "data.mean=0.4"]
    train_here(shapes, tmp_path / "r", "--set", "data.channels=1", *probe, net="of_channels")
    preprocessing = read(tmp_path / "r", "best/model.json")["preprocessing"]
    assert preprocessing["mean"] == [0.4] and 0.1 < preprocessing["std"][0] < 0.4
    image = next((shapes / "val" / "disc").iterdir())
    model, grey = ddp_ft.load(tmp_path / "r", device="cpu"), Image.open(image).convert("L")
    assert model(str(image)) == model(grey) == model(np.asarray(grey))


def test_what_is_refused(bands: Path, tmp_path: Path) -> None:
    for more, net, said in (
        ([], "of_channels", r"5 channels where 3 are expected .*\n--set data.channels=5"),
        (FIVE, "plain", "plain cannot take images of 5 channels and 32x32 pixels"),
        ([*FIVE, "--augment", "medium"], "of_channels", "augment.policy cannot be applied to images of 5 channels"),
    ):
        with pytest.raises(UserError, match=said):
            train_here(bands, tmp_path / "r", *more, net=net)
