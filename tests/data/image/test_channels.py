"""Images of other than three channels: grey ones, arrays and TIFFs of many, and what cannot be taken for them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from torch import nn

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.contracts import BadSample
from ddp_ft.data.image import jpeg
from ddp_ft.data.image.arrays import look_at, unused_channels
from ddp_ft.data.image.channels import as_grey, with_channels
from ddp_ft.data.image.decode import decode, open_image
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import check_colours, eval_transform, train_transform
from ddp_ft.data.image.undecoded import asked
from ddp_ft.data.sources.predict_inputs import list_images
from ddp_ft.data.sources.scan import list_classes
from ddp_ft.errors import UserError
from ddp_ft.models import build_model
from ddp_ft.models.build import Variant, create_from_spec
from ddp_ft.models.channels import with_input_of

FIVE = np.random.default_rng(0).integers(0, 256, (6, 9, 5), dtype=np.uint8)  # H x W x C
ALL = AugmentConfig(crop_min=0.3, vertical_flip=0.5, right_angles=0.5, rotation=9.0, blur=0.5, erasing=0.5)


def saved(file: Path, values: np.ndarray) -> Path:
    np.save(file, values)
    return file


def planes(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(values, 2, 0).copy())


def test_grey_is_pillows_and_exact_where_colours_are_equal(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(FIVE[..., :3]).save(tmp_path / "a.png")
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert np.array_equal(decode(tmp_path / "a.png", 1)[0], expected)
    colours = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    for grey in (with_channels(planes(colours), 1), as_grey(planes(colours))):  # the latter is for other devices
        assert np.array_equal(grey[0], expected)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(with_channels(with_channels(levels, 3), 1), levels)
    Image.fromarray(FIVE[..., 0]).resize((64, 64)).save(tmp_path / "a.jpg")
    assert torch.equal(decode(tmp_path / "a.jpg", 1).expand(3, -1, -1), decode(tmp_path / "a.jpg"))
    file = asked(open_image(tmp_path / "a.jpg"), 1)
    assert file.pixels(1).shape == (64, 64, 1) and file.pixels(8).shape == (8, 8, 1)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert np.array_equal(asked(open_image(tmp_path / "a.jpg"), 1).pixels(2), file.pixels(2))


def test_axes_of_an_array(tmp_path: Path) -> None:
    """The last ones are the channels if their number fits, else the first; two axes are one channel."""
    assert torch.equal(decode(saved(tmp_path / "a.npy", FIVE), 5), planes(FIVE))
    assert torch.equal(decode(saved(tmp_path / "b.npy", np.moveaxis(FIVE, 2, 0)), 5), planes(FIVE))
    assert torch.equal(decode(saved(tmp_path / "c.npy", FIVE[:5, :, :5]), 5), planes(FIVE[:5, :, :5]))
    assert torch.equal(decode(saved(tmp_path / "d.npy", FIVE[..., 0]), 1)[0], planes(FIVE)[0])
    assert torch.equal(decode(tmp_path / "d.npy")[2], planes(FIVE)[0])
    assert torch.equal(decode(saved(tmp_path / "e.npy", FIVE[..., :3])), planes(FIVE)[:3])
    assert decode(tmp_path / "e.npy", 1).shape == (1, 6, 9)


def test_values_that_are_not_8_bits(tmp_path: Path) -> None:
    for values in (FIVE.astype(np.uint16) * 257, FIVE.astype(np.float32) / 255, FIVE.astype(np.int32)):
        assert torch.equal(decode(saved(tmp_path / "a.npy", values), 5), planes(FIVE))
    seen = eval_transform(
        Preprocess((6, 9), (0.5,) * 5, (0.2,) * 5, "nearest", 1.0, value_range=(0.0, 1020.0), channels=5)
    )
    wide = saved(tmp_path / "b.npy", FIVE.astype(np.uint16) * 4)
    assert torch.equal(seen(open_image(wide)), planes(FIVE))


@pytest.mark.parametrize(
    ("values", "channels", "said"),
    [
        (FIVE, 3, r"a.npy: 5 channels where 3 are expected .*data.channels=5"),
        (FIVE[..., 0], 5, "1 channel where 5"),
        (FIVE[..., :0], 5, "no pixels"),
        (FIVE[..., None], 5, "4 dimensions"),
        (FIVE > 9, 5, "values of bool"),
        (np.array([[None, {}]]), 1, "Python objects"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, values: np.ndarray, channels: int, said: str) -> None:
    with pytest.raises(BadSample, match=said):
        decode(saved(tmp_path / "a.npy", values), channels)


def test_damaged_arrays_and_photos_of_too_few_channels(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npy", FIVE)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(BadSample, match=r"a\.npy: "):
        decode(file, 5)
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**4, 10**4)})
        stream.truncate(stream.tell() + 10**8)  # it takes no room
    with pytest.raises(BadSample, match="pixels, more than the limit"):
        decode(file, 1)
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0")  # cut off behind its header
    with pytest.raises(BadSample, match="without an image"):
        decode(tmp_path / "a.tif", 5)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(FIVE[..., :3]).save(tmp_path / name)
        with pytest.raises(BadSample, match="3 channels where 5 are expected"):
            decode(tmp_path / name, 5)


def test_tiffs(tmp_path: Path) -> None:
    """Samples of a pixel, planes, or pages; smaller pages and those of other types are not among them."""
    first, pages, file = np.moveaxis(FIVE, 2, 0), {"photometric": "minisblack"}, tmp_path / "a.tif"
    tifffile.imwrite(file, FIVE, planarconfig="contig", **pages)
    assert torch.equal(decode(file, 5), planes(FIVE))
    tifffile.imwrite(file, first, planarconfig="separate", **pages)
    assert torch.equal(decode(file, 5), planes(FIVE))
    with tifffile.TiffWriter(file) as writer:
        for page in (*first, first[0, :3]):
            writer.write(page.astype(np.uint16) * 257, **pages)
    assert torch.equal(decode(file, 5), planes(FIVE))
    assert unused_channels(str(file)) == 5
    assert look_at(str(file)).shape == (6, 9, 3)
    with pytest.raises(BadSample, match="5 channels where 4 are expected"):
        decode(file, 4)
    tifffile.imwrite(file, FIVE[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    assert torch.equal(decode(file, 4), planes(FIVE)[:4])
    assert torch.equal(decode(file), planes(FIVE)[:3]), "alpha is dropped, as without data.channels"
    assert unused_channels(str(file)) == 0


def test_where_tifffile_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FIVE, photometric="minisblack")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(BadSample, match=r"pip install 'ddp_ft\[tiff\]'"):
        decode(tmp_path / "a.tif", 5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_training_images_have_these_channels(tmp_path: Path, channels: int) -> None:
    preprocess = Preprocess((16, 24), (0.5,) * channels, (0.2,) * channels, channels=channels)
    image = open_image(saved(tmp_path / "a.npy", FIVE[..., :channels]))
    for seed in range(8):
        torch.manual_seed(seed)
        assert train_transform(preprocess, ALL)(image).shape == (channels, 16, 24)


def test_colours_are_for_three_channels() -> None:
    check_colours(AugmentConfig(policy="randaugment", color_jitter=0.5, grey=0.5), 3)
    check_colours(AugmentConfig(policy="randaugment", color_jitter=0.5), 1)
    with pytest.raises(UserError, match=r"augment.grey cannot be applied to an image of one"):
        check_colours(AugmentConfig(grey=0.5), 1)
    with pytest.raises(UserError, match=r"augment.policy and augment.color_jitter .* 5 channels"):
        check_colours(AugmentConfig(policy="randaugment", color_jitter=0.5), 5)


def test_arrays_are_images_only_where_there_are_no_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "1.npy", FIVE)
    found = list_classes(tmp_path)
    assert (list(found.paths), found.counts, found.others.total()) == (["a/1.npy", "b/1.npy"], [1, 1], 0)
    assert len(list_images([str(tmp_path)])) == len(list_images([str(tmp_path / "*" / "*.npy")])) == 2
    Image.fromarray(FIVE[..., :3]).save(tmp_path / "a" / "1.png")
    found = list_classes(tmp_path)
    assert (list(found.paths), found.counts, dict(found.others)) == (["a/1.png"], [1, 0], {".npy": 2})
    assert len(list_images([str(tmp_path)])) == 1


@pytest.mark.parametrize(
    ("name", "channels"), [("timm/test_resnet", 1), ("timm/test_vit", 5), ("torchvision/squeezenet1_1", 5)]
)
def test_weights_of_three_channels(name: str, channels: int) -> None:
    """As timm adapts its own; a model that is built again from model.json takes them too."""
    source = build_model(name, 3).module
    built = build_model(name, 3, variant=Variant(channels=channels))
    target = create_from_spec(built.spec).state_dict()
    state, notes = with_input_of(source.state_dict(), target)
    assert {key: each.shape for key, each in state.items()} == {key: each.shape for key, each in target.items()}
    first = next(key for key, part in source.named_modules() if isinstance(part, nn.Conv2d))
    own = source.get_submodule(first).weight
    assert torch.equal(state[f"{first}.weight"], timm.models.adapt_input_conv(channels, own))
    assert len(notes) == 1 and first in notes[0]
    assert built.processor.example(2)["image"].shape[1] == channels
