"""From an image file to a tensor: decoding, transforms, augmentation, mixing."""
