"""Another image size than the model's own, with weights of its own size."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ddp_ft.errors import UserError
from ddp_ft.models import build_model, load_weights
from tests.support.marks import slowly


@pytest.mark.parametrize(
    ("name", "own", "other", "table"),
    [
        ("timm/vit_tiny_patch16_224", 224, 96, "pos_embed"),
        *slowly(
            ("timm/vit_tiny_patch16_224", 96, 224, "pos_embed"),
            ("timm/vit_relpos_small_patch16_224", 224, 96, None),
            ("timm/coatnet_nano_rw_224", 224, 96, "stages.2.blocks.0.attn.rel_pos.relative_position_bias_table"),
            ("timm/swin_s3_tiny_224", 224, 112, "layers.2.blocks.0.attn.relative_position_bias_table"),
            ("torchvision/vit_b_32", 224, 96, "encoder.pos_embedding"),
        ),
        ("timm/resnet10t", 224, 97, None),
        ("torchvision/mobilenet_v2", 224, 64, None),
    ],
)
def test_weights_of_one_size_into_another(name: str, own: int, other: int, table: str | None, tmp_path: Path) -> None:
    source = build_model(name, 5, own).module.state_dict()
    save_file({key: tensor.contiguous() for key, tensor in source.items()}, tmp_path / "own.safetensors")
    built = build_model(name, 5, other)
    assert built.processor.preprocess.size == (other, other)
    report = load_weights(built, name, str(tmp_path / "own.safetensors"))
    assert (report.skipped, report.missing, report.unexpected) == ((), (), ())
    state = built.module.state_dict()
    changed = {key for key in state if state[key].shape != source[key].shape}
    assert (table in changed) if table else not changed
    assert all(torch.equal(state[key], source[key]) for key in state if key not in changed)
    with torch.no_grad():
        assert built.module.eval()(torch.rand(2, 3, other, other)).shape == (2, 5)


def test_resampled_embedding_is_the_old_one_seen_coarser(tmp_path: Path) -> None:
    name = "timm/vit_tiny_patch16_224"
    source = build_model(name, 5).module.state_dict()
    ramp = torch.linspace(0, 1, 14)
    source["pos_embed"][0, 1:] = ramp.repeat_interleave(14)[:, None]  # rises from the upper row to the lower one
    save_file(source, tmp_path / "own.safetensors")
    built = build_model(name, 5, 112)
    load_weights(built, name, str(tmp_path / "own.safetensors"))
    rows = built.module.state_dict()["pos_embed"][0, 1:, 0].reshape(7, 7)
    assert torch.allclose(rows, rows[:, :1].expand(7, 7), atol=1e-5)
    expected = F.interpolate(ramp[None, None], 7, mode="linear")[0, 0]
    assert torch.allclose(rows[:, 0], expected, atol=0.02)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/efficientformer_l1", 256),
        ("torchvision/alexnet", 32),
        ("torchvision/vit_b_16", 100),
        ("torchvision/maxvit_t", 256),
    ],
)
def test_size_that_the_model_cannot_take_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"cannot take images of {size}x{size}") as caught:
        build_model(name, 5, size)
    assert "--image-size" in caught.value.hint and "\n" not in caught.value.message


def test_table_that_no_filter_resamples_is_refused_with_a_way_out(tmp_path: Path) -> None:
    name = "timm/gmlp_s16_224"
    save_file(dict(build_model(name, 5).module.state_dict()), tmp_path / "own.safetensors")
    built = build_model(name, 5, 112)
    with pytest.raises(UserError) as caught:
        load_weights(built, name, str(tmp_path / "own.safetensors"))
    assert "--image-size" in caught.value.hint
