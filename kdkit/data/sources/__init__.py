"""Sources: modules that read images, labels and keys."""
