"""Pushing pipelines of diffusers: all their components in one repository, private unless told otherwise."""

from dataclasses import replace
from typing import Any

from ..hub import CardFacts, PushMixin


class PushPipelineMixin(PushMixin):
    """Gives a `DiffusionPipeline` with a score network `transformer` our `push_to_hub`; put it before that class.

    Usage: `UnifiedDiffusionTextPipeline.from_pretrained().push_to_hub("me/pipeline", revision="v1")`
    """

    transformer: Any

    def card_facts(self) -> CardFacts:
        """Of the network, and how the pipeline is loaded."""
        usage = (
            "import hf_unified_diffusion\nfrom diffusers import DiffusionPipeline\n\n"
            'pipe = DiffusionPipeline.from_pretrained("{repo_id}")'
        )
        return replace(self.transformer.card_facts(), what=f"A {type(self).__name__}.", usage=usage)
