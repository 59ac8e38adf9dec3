"""Pipelines: one per task, all over the same loop."""
