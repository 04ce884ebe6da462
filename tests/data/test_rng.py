import pytest
import torch

from ddp_ft.data.rng import seed_masks

HAS_CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no GPU")])]


@pytest.mark.parametrize("kind", DEVICES)
def test_masks_are_those_after_manual_seed(kind: str) -> None:
    device = torch.device(kind)
    drawn = []
    for seed in (7, 2**62 + 1):
        for seeding in (torch.manual_seed, lambda seed: seed_masks(seed, device)):
            seeding(seed)
            drawn.append(torch.nn.functional.dropout(torch.ones(64, device=device)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[1], drawn[3])
