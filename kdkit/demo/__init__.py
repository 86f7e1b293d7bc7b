"""The demonstration: distillation on scikit-learn's digits, from a live teacher and from a cache."""
