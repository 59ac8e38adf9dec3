"""Losses, layouts, likelihoods, the training run, and the corpus it reads."""
