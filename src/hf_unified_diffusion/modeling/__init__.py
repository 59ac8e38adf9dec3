"""The score network: one transformer for every modality, its configuration, and how it starts from others."""
