"""TensorBoard in a real browser: what a run wrote is what a person sees."""

import pytest

from tests.support.browser import browser
from tests.support.runs import train_here
from tests.system.faults.test_curves import served


@pytest.mark.slow
def test_the_page_shows_curves_and_images(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "log.pictures=true", "--set", "log.histograms=true", epochs=2)
    with served(tmp_path / "r/tensorboard", "true") as ask, browser() as page:
        page.open(f"{ask.address}#timeseries")
        groups = ["1_progress", "2_loss", "3_quality", "4_speed", "5_learning_rates", "6_gradients", "7_system"]
        assert page.wait(lambda: all(group in page.text() for group in groups)), page.text()
        text = page.text()
        assert [text.index(group) for group in groups] == sorted(text.index(group) for group in groups)
        for dashboard, wanted in {
            "images": ["8_images/1_first_batch", "8_images/2_confusion_matrix", "8_images/5_worst_mistakes"],
            "pr_curves": ["disc", "square", "stripes"],
            "hparams": ["1_model", "2_learning_rate", "3_epochs", "4_batch_size", "5_recipe", "val/accuracy"],
            "custom_scalars": ["learning rates", "images per second"],
            "text": ["recipe"],
            "histograms": ["weights"],
        }.items():
            page.open("about:blank")
            page.open(f"{ask.address}#{dashboard}")
            assert page.wait(lambda names=wanted: all(name in page.text() for name in names)), (dashboard, page.text())
            if dashboard == "images":
                assert page.wait(lambda: len(page.images()) >= 4), page.images()
