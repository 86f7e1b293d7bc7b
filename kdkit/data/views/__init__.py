"""Views: what the augmented views of an image look like, reproducible from a seed."""
