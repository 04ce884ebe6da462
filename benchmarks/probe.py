"""What a linear probe costs: `--recipe linear_probe` against the loop that guides show, in turn, on the same photos.

The loop by the book: ImageFolder, torchvision's transforms on Pillow's images, a frozen backbone without a graph and
in channels_last, a DataLoader with workers, an evaluation after each epoch. Both train the same head on the same
weights, without augmentation.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.methods import MODELS
from launch.demo_assets import written_aside

MODEL = MODELS["lite0"]
COUNTS = {"train": 1280, "val": 320}
SIZE = (500, 375)
BATCH, RATE, SMOOTHING = 32, 3e-3, 0.1


def write_photos(folder: Path) -> None:
    """JPEG files of 500 x 375, cut at random from the photos that come with scikit-learn and scikit-image, one class
    each, with some noise so that they are as large as camera files."""
    generator = np.random.default_rng(0)
    originals = list(_originals())
    for split, count in COUNTS.items():
        for number in range(count):
            label = number % len(originals)
            file = folder / split / f"photo_{label}" / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            _cut(originals[label], generator).save(file, quality=85)


def _originals() -> Iterator[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    for pixels in (*load_sample_images().images, data.coffee(), data.chelsea(), data.astronaut(), data.rocket()):
        yield Image.fromarray(pixels).convert("RGB")


def _cut(photo: Image.Image, generator: np.random.Generator) -> Image.Image:
    share = generator.uniform(0.55, 1.0)
    width = int(min(photo.width, photo.height * 4 / 3) * share)
    height = int(width * 3 / 4)
    left, top = generator.integers(photo.width - width + 1), generator.integers(photo.height - height + 1)
    cut = photo.crop((left, top, left + width, top + height)).resize(SIZE, Image.Resampling.BICUBIC)
    noisy = np.asarray(cut).astype(np.int16) + generator.integers(-12, 13, (SIZE[1], SIZE[0], 3), dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def by_the_book(data: Path, weights: str, epochs: int, side: int, workers: int) -> dict[str, float]:
    """Seconds from the first step to the last evaluation, and its accuracy."""
    import timm
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    name = MODEL.name.partition("/")[2]
    backbone = timm.create_model(name, num_classes=0)
    backbone.load_state_dict({k: v for k, v in load_file(weights).items() if not k.startswith("classifier.")})
    backbone = backbone.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    config = backbone.default_cfg
    shrink = Resize(int(side / config["crop_pct"]), InterpolationMode.BICUBIC)
    transform = Compose([shrink, CenterCrop(side), ToTensor(), Normalize(config["mean"], config["std"])])
    sets = {split: ImageFolder(str(data / split), transform) for split in COUNTS}
    loaders = {s: DataLoader(sets[s], BATCH, shuffle=s == "train", num_workers=workers) for s in COUNTS}
    head = nn.Linear(backbone.num_features, len(sets["train"].classes))
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.0)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def features(images: "torch.Tensor") -> "torch.Tensor":
        with torch.no_grad():
            found: torch.Tensor = backbone(images.to(memory_format=torch.channels_last))
        return found

    began, right = time.perf_counter(), 0
    for _ in range(epochs):
        head.train()
        for images, target in loaders["train"]:
            optimizer.zero_grad()
            criterion(head(features(images)), target).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            right = sum(int((head(features(i)).argmax(1) == t).sum()) for i, t in loaders["val"])
    return {"seconds": time.perf_counter() - began, "accuracy": right / len(sets["val"])}


def ours(data: Path, weights: str, epochs: int, side: int, run: Path) -> dict[str, float]:
    """The same of the real command; its features, checkpoints and logs are within the seconds."""
    options = ["--data", data, "--model", MODEL.name, "--weights", weights, "--image-size", side, "--run-dir", run]
    more = ["--recipe", "linear_probe", "--epochs", epochs, "--batch-size", BATCH, "--device", "cpu"]
    command = [sys.executable, "-m", "ddp_ft.train", *map(str, [*options, *more])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row["split"] == "val"][-1]
    return {"seconds": summary["wall_seconds"], "accuracy": last["accuracy"]}


def _measured(arguments: list[str]) -> dict[str, Any]:
    """One side in a process of its own: what it says, all its seconds, and those of its processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.probe", *arguments]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(told.splitlines()[-1]), "whole": time.perf_counter() - began, "cpu": cpu}


@click.command()
@click.option("--data", type=Path, help="Class folders below train/ and val/; default: photos made for it.")
@click.option("--epochs", default=10)
@click.option("--side", default=128, help="Pixels.")
@click.option("--workers", default=2, help="Of the loop by the book.")
@click.option("--repeat", default=3, help="How often each side is measured.")
@click.option("--root", type=Path, default=Path(".cache/probe"))
@click.option("--only", type=click.Choice(["book", "ours", "again"]), hidden=True)
def main(data: Path | None, epochs: int, side: int, workers: int, repeat: int, root: Path, only: str | None) -> None:
    """Print seconds and accuracy of both sides, and their ratio. "again" is ours with the features there already."""
    weights = MODEL.find_weights()
    if weights is None:
        raise click.ClickException(f"Missing: {MODEL.needs}.")
    if data is None:
        data = root / "photos"
        if not data.exists():
            with written_aside(data) as target:
                write_photos(target)
    if only is not None:
        click.echo(json.dumps(_one(only, data, weights, epochs, side, workers, root)))
        return
    shared = ["--data", data, "--epochs", epochs, "--side", side, "--workers", workers, "--root", root, "--only"]
    click.echo(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    click.echo(f"{'':6}{'seconds':>9}{'ratio':>7}{'whole':>8}{'ratio':>7}{'cpu':>8}{'ratio':>7}  accuracy")
    for _ in range(repeat):
        results = {name: _measured([*map(str, shared), name]) for name in ("book", "ours", "again")}
        for name, result in results.items():
            columns = [f"{result[k]:9.1f}{results['book'][k] / result[k]:7.1f}" for k in ("seconds", "whole", "cpu")]
            click.echo(f"{name:6}{''.join(columns)}  {result['accuracy']:.4f}")


def _one(only: str, data: Path, weights: str, epochs: int, side: int, workers: int, root: Path) -> dict[str, float]:
    if only == "book":
        return by_the_book(data, weights, epochs, side, workers)
    run, cache = root / "run", root / "run/cache"
    kept = root / "kept"
    if only == "again":
        shutil.rmtree(kept, ignore_errors=True)
        cache.rename(kept)
    shutil.rmtree(run, ignore_errors=True)
    if only == "again":
        run.mkdir()
        kept.rename(cache)
    return ours(data, weights, epochs, side, run)


if __name__ == "__main__":
    main()
