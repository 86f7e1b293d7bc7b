"""HDF5 files of a cache: open, check, read and write."""
