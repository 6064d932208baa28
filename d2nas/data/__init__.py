"""Images: where they come from, how they are decoded, split and batched."""
