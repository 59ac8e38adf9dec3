"""What a network is calibrated on before it is rounded: training rows, as context and as canvases."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Generator

from .mixture import MicroBatches
from .objective import ObjectiveConfig, layout_for
from .token_data import PackedTokens, starts_for

ROWS_AT_ONCE = 4
LAYOUTS = ObjectiveConfig(complementary=False)  # as many canvas tokens as context tokens


def calibration_batches(
    data: Mapping[str, PackedTokens],
    rows: int,
    mask_token_id: int,
    sequence_length: int = 256,
    seed: int = 0,
    others: Sequence[MicroBatches] = (),
) -> list[dict[str, Any]]:
    """`rows` rows of the data, or a few more, its modalities in turn; masks, times and gaps are drawn.

    After every turn of these comes a micro-batch of each of the `others`: pictures, speech.

    Raises ValueError for fewer rows than one, and data that does not fill them.
    Usage: `codes = calibrated_codes(model, config, calibration_batches({"text": packed}, 32, mask_token_id))`
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    generator, batches = Generator().manual_seed(seed), []
    for index in range(-(-rows // ROWS_AT_ONCE)):
        turn, which = divmod(index, len(data))
        packed = list(data.values())[which]
        tokens = packed.rows(starts_for(packed, sequence_length, ROWS_AT_ONCE, turn, seed), sequence_length)
        parts = layout_for(tokens, LAYOUTS, mask_token_id, 1.0, generator)
        batches.append({"segments": [segment for segment, _ in parts]})
        for source in others if which == len(data) - 1 else ():
            parts = layout_for(source.batch(turn, seed), LAYOUTS, mask_token_id, 1.0, generator)
            batches.append({"segments": [segment for segment, _ in parts]})
    return batches
