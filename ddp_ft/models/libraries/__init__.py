"""Where models come from: timm, torchvision, the user's own file."""
