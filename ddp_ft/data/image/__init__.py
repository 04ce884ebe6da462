"""Whatever knows pixels: decoding, transforms, augmentation."""
