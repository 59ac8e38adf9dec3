"""Calibration rows are training rows: of every modality, as context and as canvases with masks and times."""

import numpy as np
import pytest
import torch

from hf_unified_diffusion.training.calibration_rows import ROWS_AT_ONCE, calibration_batches
from hf_unified_diffusion.training.token_data import PackedTokens

MASK = 11


def packed(modality: str) -> PackedTokens:
    tokens = np.random.default_rng(0).integers(0, 11, 2000).astype(np.uint16)
    return PackedTokens(tokens, np.zeros(2000, np.uint32), modality, 2000)


def test_modalities_take_turns_and_both_paths_are_there() -> None:
    data = {name: packed(name) for name in ("text", "code")}
    batches = calibration_batches(data, 8 * ROWS_AT_ONCE - 1, MASK, sequence_length=16)
    segments = [batch["segments"] for batch in batches]
    assert [part[0].modality for part in segments] == ["text", "code"] * 4
    assert all(part[0].is_context and not part[-1].is_context for part in segments)
    assert all(part[0].values.shape[0] == ROWS_AT_ONCE for part in segments)
    assert all(bool((part[-1].values == MASK).any()) for part in segments)
    assert len({float(time) for part in segments for time in part[-1].time.flatten()}) > 4
    rows = torch.cat([part[0].values for part in segments if part[0].values.shape[1] == 16][::2])
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_seed_decides_all() -> None:
    data = {"text": packed("text")}
    one, two, other = (calibration_batches(data, 8, MASK, 16, seed=seed) for seed in (1, 1, 2))
    values = [[s.values for batch in batches for s in batch["segments"]] for batches in (one, two, other)]
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(values[0], values[2], strict=False))


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        calibration_batches({"text": packed("text")}, 0, MASK)
    with pytest.raises(ValueError, match="do not fill"):
        calibration_batches({"text": packed("text")}, 4, MASK, sequence_length=1500)
