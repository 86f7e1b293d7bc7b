"""The cache format: names, limits and documents. Nothing in this package touches a file."""
