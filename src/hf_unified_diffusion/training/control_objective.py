"""Training a ControlNet on a frozen base: which tokens a response is asked for, and the losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..codecs.text_codec import TextCodec, pad_right
from ..contracts import Segment
from ..modeling.control_pass import Control
from ..modeling.controlnet import UnifiedControlNetModel
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .control_examples import ControlExample
from .layouts import IGNORED_LABEL, Target, hide_exactly
from .objective import ObjectiveConfig, ScoreNetworkObjective

TOKENS_AFTER_END = 8  # of a response, at most: a canvas learns that nothing follows the end


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of an example; the response is without its end token."""

    hint: list[int]
    prompt: list[int]
    response: list[int]


def encode_examples(codec: TextCodec, examples: Sequence[ControlExample]) -> list[EncodedExample]:
    """Tokens as a pipeline makes them: prompt and response are encoded apart.

    Usage: `encode_examples(TextCodec(tokenizer), [tool_example("train", i) for i in range(8)])`
    """
    texts = [text for example in examples for text in (example.hint, example.prompt, example.response)]
    ids = codec.encode(texts)
    return [EncodedExample(*ids[i : i + 3]) for i in range(0, len(ids), 3)]


def control_layout(
    rows: Sequence[EncodedExample],
    modality: str,
    mask_token_id: int,
    end_token_id: int,
    block_length: int | None,
    generator: Generator,
) -> tuple[list[tuple[Segment, Target]], Segment]:
    """What a step sees: prompts and responses as clean context, responses as noisy blocks beside it, and the hints.

    Only responses, with their end, are asked for: causally from the context, and where they are hidden in the blocks.
    Blocks lie where the text pipeline has them, the first one at the end of the prompt.

    Args:
        block_length: tokens of a block, at least 1; None leaves the blocks out, and half of the work.

    Usage: `parts, hint = control_layout(rows, "text", mask_token_id, end_token_id, 16, generator)`
    """
    hint_ids, hint_mask = pad_right([row.hint for row in rows], end_token_id)
    hint = Segment(modality, hint_ids, mask=hint_mask)
    clean = [[*row.prompt, *row.response, end_token_id] for row in rows]
    tokens, mask = pad_right(clean, end_token_id)
    starts = torch.tensor([len(row.prompt) for row in rows])[:, None]
    ends = torch.tensor([len(ids) for ids in clean])[:, None]
    following = torch.arange(1, tokens.shape[1] + 1)
    asked = (following >= starts) & (following < ends)
    labels = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1).masked_fill(~asked, IGNORED_LABEL)
    context = Segment(modality, tokens, mask=mask), Target(labels, torch.ones(tokens.shape))
    if block_length is None:
        return [context], hint

    responses = [[*row.response, *[end_token_id] * written_after(len(row.response), block_length)] for row in rows]
    answer, real = pad_right(responses, end_token_id)
    hidden, time = hide_exactly(len(rows), answer.shape[1], block_length, generator)
    hidden = hidden if real is None else hidden & real
    index = torch.arange(answer.shape[1])
    canvas = Segment(
        modality,
        answer.masked_fill(hidden, mask_token_id),
        time=time,
        positions=(starts + index).float(),
        mask=real,
        canvas=(1 + index // block_length).expand(answer.shape),
        reach=starts + index // block_length * block_length,
    )
    weight = torch.where(hidden, 1 / time, 0.0)
    return [context, (canvas, Target(answer.masked_fill(~hidden, IGNORED_LABEL), weight))], hint


def written_after(length: int, block_length: int) -> int:
    """End tokens after a response: to the end of the block that its end falls into, `TOKENS_AFTER_END` at most."""
    return min(block_length - length % block_length, TOKENS_AFTER_END)


class ControlObjective(nn.Module):
    """A frozen base, a ControlNet that trains, and the losses of what the base predicts under it.

    Usage: `ControlObjective(model, controlnet, ObjectiveConfig(causal_weight=1.0))(parts, hint)["loss"].backward()`
    """

    def __init__(self, transformer: UnifiedDiffusionModel, controlnet: UnifiedControlNetModel, config: ObjectiveConfig):
        super().__init__()
        self.controlnet = controlnet
        self.score = ScoreNetworkObjective(transformer.eval().requires_grad_(False), config)

    def forward(self, parts: Sequence[tuple[Segment, Target]], hint: Segment) -> dict[str, Float[Tensor, ""]]:
        """The losses of `ScoreNetworkObjective`."""
        control = Control(self.controlnet, self.controlnet.read(self.score.model, hint))
        return self.score(parts, [control])
