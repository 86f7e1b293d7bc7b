"""Sources: where images, labels and keys come from."""
