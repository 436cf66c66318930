"""A function: the smallest worker."""
