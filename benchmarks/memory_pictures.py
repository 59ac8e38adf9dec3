"""Memory guidance of pictures: are they nearer to what was recalled than without the memory, and than with a wrong one?

    python benchmarks/memory_pictures.py --num 200
    python benchmarks/memory_pictures.py --split validation --num 48 --strengths 0.5 1 2     # to choose a strength

One store of 1,000 rendered pictures of held-out concepts serves all prompts, each found by MiniLM's embedding of its
caption. A prompt is the caption of another picture of a concept that the store knows in other styles. Pictures of one
seed are compared: with what the store recalls, with what it recalls for another prompt (wrong), and without a memory.
Nearness is the mean cosine of the CLIP stand-in (see `caption_match.py`) between a picture and the recalled ones; the
ceiling is the picture that the prompt is the caption of. The control is at strength 0.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from caption_match import CaptionMatcher
from diffusers.utils import make_image_grid
from evaluators import EfficientNetFeatures, features_of
from images import fitted_matcher
from measure import Row, argument_parser, report, start
from memory_guidance import MiniLM, share
from pictures import Picture, choose, is_drawing, remember
from PIL import Image
from tqdm.auto import tqdm

from hf_unified_diffusion import ArrowStorage, UnifiedDiffusionImagePipeline
from hf_unified_diffusion.memory.arrow_storage import Recall
from hf_unified_diffusion.memory.memory_conditioner import MemoryConditioner
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT

SHOWN = 8


def prompts_and_store(pictures: Sequence[Picture], num: int, num_stored: int) -> tuple[list[Picture], list[Picture]]:
    """One picture each of `num` concepts that have others, and of all the rest at most `num_stored`, others first."""
    of_concept: dict[str, list[Picture]] = {}
    for picture in pictures:
        of_concept.setdefault(picture.concept, []).append(picture)
    asked = [own[0] for own in of_concept.values() if len(own) > 1][:num]
    if len(asked) < num:
        raise ValueError(f"num must be at most the concepts with several pictures, {len(asked)}, got {num}")
    chosen = {id(picture) for picture in asked}
    concepts = {picture.concept for picture in asked}
    rest = [picture for picture in pictures if id(picture) not in chosen]
    rest.sort(key=lambda picture: picture.concept not in concepts)  # stable
    return asked, rest[:num_stored]


def drawn(
    pipe: UnifiedDiffusionImagePipeline, conditioner: MemoryConditioner, prompts: list[str], recalls, args
) -> dict[str, list[Image.Image]]:
    """Pictures by way: without a memory, at strength 0, and with the right and a wrong memory at each strength."""
    wrong = recalls[len(recalls) // 2 :] + recalls[: len(recalls) // 2]
    ways: dict[str, tuple[list[Recall] | None, float]] = {"none": (None, 0.0), "control": (recalls, 0.0)}
    for strength in args.strengths:
        ways |= {f"right {strength}": (recalls, strength), f"wrong {strength}": (wrong, strength)}
    made: dict[str, list[Image.Image]] = {name: [] for name in ways}
    for begin in tqdm(range(0, len(prompts), args.batch_size), desc="prompts"):
        part = slice(begin, begin + args.batch_size)
        for name, (of, strength) in ways.items():
            if name == "control" and begin >= args.num_control:
                continue
            told: dict[str, Any] = {"own_memory": False}
            if of is not None:
                told = conditioner.picture_options(of[part], strength)
            made[name] += pipe(prompts[part], args.size, args.size, seed=args.seed + begin, **told).images
    return made


def steering(
    matcher: CaptionMatcher, made: dict[str, list[Image.Image]], asked: Sequence[Picture], recalls, minilm, args
) -> list[Row]:
    """Shares of nearer pictures by strength."""
    network = EfficientNetFeatures()
    sets = {name: pictures for name, pictures in made.items() if name != "control"}
    sets["ceiling"] = [picture.image for picture in asked]
    seen = {name: matcher.of_pictures(features_of(network, pictures)) for name, pictures in sets.items()}
    memories = [Image.fromarray(memory.payload) for recall in recalls for memory in recall.memories]
    recalled = matcher.of_pictures(features_of(network, memories)).split([len(r.memories) for r in recalls])
    means = torch.stack([own.mean(dim=0) for own in recalled])  # the mean cosine is that with the mean
    near = {name: (vectors * means).sum(dim=1) for name, vectors in seen.items()}
    captions = matcher.of_captions(minilm([picture.caption for picture in asked]))
    matched = {name: (vectors * captions).sum(dim=1).mean().item() for name, vectors in seen.items()}
    rows = []
    for name in (*(f"right {strength}" for strength in args.strengths), "ceiling"):
        wrong = name.replace("right", "wrong")
        is_ceiling = name == "ceiling"
        rows.append(
            {
                "memory": "the caption's own picture (ceiling)" if is_ceiling else f"strength {name.split()[1]}",
                "prompts": len(asked),
                "nearer than without": share(near[name], near["none"]),
                "nearer than with a wrong memory": "" if is_ceiling else share(near[name], near[wrong]),
                "cosine": near[name].mean().item(),
                "cosine, wrong": "" if is_ceiling else near[wrong].mean().item(),
                "cosine, without": near["none"].mean().item(),
                "cosine with the caption": matched[name],
                "cosine with the caption, wrong": "" if is_ceiling else matched[wrong],
                "cosine with the caption, without": matched["none"],
            }
        )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pictures", type=Path, default=Path("data/image_pictures"), help="folders of rendered ones")
    parser.add_argument("--cache", type=Path, default=Path("runs/evaluators"), help="of features")
    parser.add_argument("--split", default="test")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--num", type=int, default=200, help="of prompts")
    parser.add_argument("--num_stored", type=int, default=1000)
    parser.add_argument("--num_recalled", type=int, default=4)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--num_control", type=int, default=32)
    parser.add_argument("--fit_pictures", type=int, default=1500, help="of train, for the CLIP stand-in")
    parser.add_argument("--batch_size", type=int, default=8)
    args, settings = start(parser)
    settings = {name: value for name, value in settings.items() if name not in ("pictures", "cache")}
    pipe = UnifiedDiffusionImagePipeline.from_pretrained(args.checkpoint or EMBEDDED_CHECKPOINT).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    minilm = MiniLM()
    train, validation, found = (
        choose(args.pictures / split, count, args.size, random.Random(args.seed), is_drawing)
        for split, count in (
            ("train", args.fit_pictures),
            ("validation", args.fit_pictures // 5),
            (args.split, 5 * args.num_stored),
        )
    )
    matcher, _ = fitted_matcher(EfficientNetFeatures(), minilm.encode, train, validation, args.cache)
    asked, stored = prompts_and_store(found, args.num, args.num_stored)
    prompts = [picture.caption for picture in asked]
    with TemporaryDirectory() as folder, ArrowStorage(folder, minilm) as storage:
        remember(storage, stored)
        conditioner = MemoryConditioner(pipe.transformer, pipe.tokenizer, storage)
        recalls = conditioner.recall("all", prompts, k=args.num_recalled, modality="image")
        made = drawn(pipe, conditioner, prompts, recalls, args)
    rows = steering(matcher, made, asked, recalls, minilm.encode, args)
    equal = sum(np.array_equal(a, b) for a, b in zip(made["control"], made["none"], strict=False))
    control = [{"prompts": len(made["control"]), "equal to the picture without, at strength 0": equal}]
    best = f"right {args.strengths[0]}"
    notes = [
        f"{len(stored)} pictures, {args.num_recalled} recalled; {args.split} split: concepts not seen in training.",
        f"memory_pictures_shown.png: without, with the memory (strength {args.strengths[0]}), the nearest recalled; "
        + "; ".join(prompts[:SHOWN])
        + ".",
    ]
    report("memory_pictures", {"Steering": rows, "Control": control}, settings, notes, args.output)
    nearest = [Image.fromarray(recall.memories[0].payload) for recall in recalls]
    shown = [picture for row in (made["none"], made[best], nearest) for picture in row[:SHOWN]]
    make_image_grid(shown, 3, SHOWN).save(args.output / "memory_pictures_shown.png")


if __name__ == "__main__":
    main()
