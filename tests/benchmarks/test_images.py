"""Drawing for the evaluation: by the checkpoint's own pipeline, from fixed seeds; features are kept between runs."""

from argparse import Namespace
from pathlib import Path

import numpy
import pytest
import torch
from evaluators import RandomFeatures, features_of
from images import cached, painted, painter, shares
from measure import Mean
from pictures import Picture
from PIL import Image

from hf_unified_diffusion import UnifiedDiffusionImagePipeline
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer


def pictures(colours: list[str]) -> list[Picture]:
    return [Picture(Image.new("RGB", (32, 32), colour), (f"a {colour} square", colour), colour) for colour in colours]


def test_what_is_drawn_is_the_pipelines_and_depends_on_no_batch(tmp_path: Path) -> None:
    pipe = UnifiedDiffusionImagePipeline(tiny_model(), flow_scheduler(), tiny_tokenizer(), tiny_dc(128))
    pipe.save_pretrained(tmp_path)
    args = Namespace(
        draw=True,
        checkpoint=tmp_path,
        device="cpu",
        size=32,
        steps=2,
        guidance=1.0,
        batch_size=2,
        seed=5,
        network_alone=False,
        memory_strength=None,
        candidates=1,
    )
    paint = painter(args)
    assert paint is not None
    drawn = painted(pictures(["red", "green", "blue"]), paint)
    assert [one.caption for one in drawn] == ["a red square", "a green square", "a blue square"]
    pipe.set_progress_bar_config(disable=True)
    alone = pipe("a blue square", height=32, width=32, num_inference_steps=2, guidance_scale=1.0,
                 generator=[torch.Generator().manual_seed(7)])  # fmt: skip
    difference = numpy.abs(numpy.asarray(drawn[2].image, int) - numpy.asarray(alone.images[0], int))
    assert difference.max() <= 1  # of 255: rounding


def test_real_pictures_alone_need_no_painter() -> None:
    assert painter(Namespace(draw=False)) is None


def test_kept_features_are_those_of_these_pictures(tmp_path: Path) -> None:
    network, first, second = RandomFeatures(), pictures(["red", "green"]), pictures(["red", "blue"])
    for _ in range(2):
        for some in (first, second):
            expected = features_of(network, [picture.image for picture in some])
            assert torch.equal(cached(network, some, tmp_path), expected)
    assert len(list(tmp_path.iterdir())) == 2


def test_shares_are_of_the_real_pictures_of_the_same_concepts() -> None:
    rows = [
        {"concepts": concepts, "pictures": what, "of": 50, "recall at 10": Mean(value, 0.1, 50)}
        for concepts in ("seen", "held out")
        for what, value in (("drawn", 0.3), ("real (ceiling)", 0.6), ("chance", 0.2))
    ]
    for row in shares(rows):
        assert (row["recall at 10"].value, row["recall at 10"].half_width) == (0.5, pytest.approx(0.1 / 0.6))
