"""Views: random augmentations of an image that are reproducible from a seed."""
