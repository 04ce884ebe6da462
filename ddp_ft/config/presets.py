"""What `augment.preset` stands for: settings of the section `augment`, below those that are given."""

from typing import Any

# "none" shows the whole picture, squeezed into the model's size. "light" is what the keys' own defaults say; a test
# holds that. "medium" is RandAugment at the magnitude of the paper and of timm's recipes, and "heavy" the policy,
# mixing and erasing of torchvision's reference recipe for training from scratch; both with larger crops than those,
# as pictures are few where one fine-tunes. Both policies change colours themselves, so there is no jitter on top.
AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "none": {
        "augment.crop_min": 1.0, "augment.flip": 0.0, "augment.policy": "none", "augment.color_jitter": 0.0,
        "augment.erasing": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "light": {
        "augment.crop_min": 0.6, "augment.flip": 0.5, "augment.policy": "none", "augment.color_jitter": 0.0,
        "augment.erasing": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "medium": {
        "augment.crop_min": 0.35, "augment.flip": 0.5, "augment.policy": "randaugment", "augment.color_jitter": 0.0,
        "augment.erasing": 0.1, "augment.mixup": 0.0, "augment.cutmix": 0.0,
    },
    "heavy": {
        "augment.crop_min": 0.2, "augment.flip": 0.5, "augment.policy": "trivialaugment", "augment.color_jitter": 0.0,
        "augment.erasing": 0.1, "augment.mixup": 0.2, "augment.cutmix": 1.0,
    },
}  # fmt: skip
