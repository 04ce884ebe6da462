"""What makes a tensor of an image file: decoding, transforms, augmentation, mixing."""
