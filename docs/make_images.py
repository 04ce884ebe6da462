"""Make the images of docs/images/: a run on scikit-learn's digits, its TensorBoard and its report in headless Chromium.

Run as `python docs/make_images.py` in a clone with the `test` extra, Chromium and its chromedriver installed.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import browser  # noqa: E402
from tests.support.images import write_digits  # noqa: E402
from tests.system.faults.test_curves import served  # noqa: E402

IMAGES = ROOT / "docs" / "images"
OPTIONS = [
    "--model", "timm/test_resnet", "--weights", "none", "--image-size", "32", "--epochs", "6", "--lr", "3e-3",
    "--seed", "0", "--device", "cpu",
]  # fmt: skip


def train(data: Path, run: Path) -> None:
    from ddp_ft.train import train as command

    command.main(["--data", str(data), "--run-dir", str(run), *OPTIONS], standalone_mode=False)


def make() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # pages show paths as they are given
        data, run = write_digits(Path("digits")), Path("runs/digits")
        train(data, run)
        with served(run.parent, "true") as ask, browser(1400, 900) as page:
            for dashboard in ("timeseries", "images"):
                page.open("about:blank")
                page.open(f"{ask.address}#{dashboard}")
                wanted = "2_loss" if dashboard == "timeseries" else "8_images"
                page.wait(lambda text=wanted: text in page.text())
                time.sleep(5)  # curves and images come one after the other
                page.save(IMAGES / f"tensorboard_{dashboard}.png")
        with browser(1100, 1300) as page:
            page.open((run / "report.html").absolute().as_uri())
            time.sleep(1)
            page.save(IMAGES / "report.png")
    for file in sorted(IMAGES.glob("*.png")):
        print(file, file.stat().st_size)


if __name__ == "__main__":
    make()
