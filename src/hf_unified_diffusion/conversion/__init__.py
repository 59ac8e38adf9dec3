"""Checkpoints of others become checkpoints of this package: weights, tokenizers, file formats."""
