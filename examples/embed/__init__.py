"""A model for real: sentence embeddings on a CPU."""
