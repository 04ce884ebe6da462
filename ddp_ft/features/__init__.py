"""What a frozen backbone makes of each image, computed once and kept."""
