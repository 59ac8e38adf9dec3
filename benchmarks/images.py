"""Pictures: KID, density and coverage, caption match, and attributes of composed scenes, with ceilings and controls.

    python benchmarks/images.py                                # real against real pictures: the ceilings
    python benchmarks/images.py --draw                         # the embedded checkpoint's pictures beside them
    python benchmarks/images.py --draw --network_alone         # without its memory of pictures (images_network)
    python benchmarks/images.py --draw --checkpoint FOLDER --steps 8
    python benchmarks/images.py --draw --candidates 4          # each the best of four (images_candidates)
    python benchmarks/images.py --draw --only_scenes           # attributes of scenes alone (images_scenes)

Real pictures are the rendered ones of data/image_pictures: `seen` holds training concepts in styles that training has
not seen, `test` concepts that no style of it has. What is drawn follows the captions of real pictures, one each, and
all pictures are judged at the size that is drawn. The caption judge and the attribute classifier are fitted on `train`;
the caption judge's penalty is chosen on `validation`. Intervals are over pictures. What is drawn is
led by the checkpoint's own memory of pictures where it has one, none of which is of a concept of `test`; with
`--network_alone` it is not: that tells what the network knows.
"""

import argparse
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from caption_match import CaptionMatcher, caption_targets, fit_on_train, recall_rows
from diffusers.utils import make_image_grid
from evaluators import EfficientNetFeatures, RandomFeatures, SentenceEncoder, features_of
from image_metrics import density_and_coverage, kid_with_interval
from measure import Mean, Row, argument_parser, report, start
from pictures import Picture, choose, coarse, is_drawing, is_scene, one_per_concept
from PIL import Image
from safetensors.torch import load_file, save_file
from scene_attributes import GRID, SceneJudge, attribute_rows
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT

SETS = {"seen": "seen", "held out": "test"}  # concepts -> folder
SHOWN = 8  # pictures of each set, for the eye
Painter = Callable[[Sequence[str]], list[Image.Image]]


def painter(args: argparse.Namespace) -> Painter | None:
    """A function from captions to pictures of the checkpoint, seeds fixed; None where only real ones are measured."""
    if not args.draw:
        return None
    from hf_unified_diffusion import UnifiedDiffusionImagePipeline

    pipe = UnifiedDiffusionImagePipeline.from_pretrained(args.checkpoint or EMBEDDED_CHECKPOINT).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance, "num_candidates": args.candidates}
    options |= {"own_memory": False if args.network_alone else None, "memory_strength": args.memory_strength}
    chosen = {name: value for name, value in options.items() if value is not None}

    def paint(captions: Sequence[str]) -> list[Image.Image]:
        drawn = []
        for i in tqdm(range(0, len(captions), args.batch_size), desc="drawing", leave=False):
            batch = list(captions[i : i + args.batch_size])
            seeds = [Generator(args.device).manual_seed(args.seed + i + j) for j in range(len(batch))]
            drawn += pipe(batch, height=args.size, width=args.size, generator=seeds, **chosen).images
        return drawn

    return paint


def cached(network: nn.Module, pictures: Sequence[Picture], cache: Path) -> Tensor:
    """`features_of`, kept by the network's kind and the pictures' pixels."""
    digest = hashlib.sha256(f"{type(network).__name__} {network.input_size}".encode())
    for picture in pictures:
        digest.update(picture.image.tobytes())
    file = cache / f"{digest.hexdigest()[:24]}.safetensors"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({"features": features_of(network, [picture.image for picture in pictures])}, partial)
        partial.rename(file)
    return load_file(file)["features"]


def painted(pictures: Sequence[Picture], paint: Painter) -> list[Picture]:
    """What is drawn for each picture's caption, with what the caption's own picture is known by."""
    drawn = paint([picture.caption for picture in pictures])
    return [
        Picture(image.convert("RGB"), picture.captions, picture.concept, "drawn", picture.attributes)
        for image, picture in zip(drawn, pictures, strict=True)
    ]


def distance_rows(
    judges: dict[str, Callable[[Sequence[Picture]], Tensor]],
    concepts: str,
    args: argparse.Namespace,
    paint: Painter | None,
) -> list[Row]:
    """KID, density and coverage of what is drawn, of other real pictures, and of the same without detail."""
    folder = args.pictures / SETS[concepts]
    chosen = choose(folder, 2 * args.num, args.size, random.Random(args.seed), is_drawing)
    reference, other = chosen[::2], chosen[1::2]
    sets = {"real (ceiling)": other, "control: real at 16 x 16 pixels": coarse(other)}
    if paint is not None:
        sets = {"drawn": painted(reference, paint), **sets}
    rows: list[Row] = []
    for judge, features in judges.items():
        real = features(reference)
        for name, pictures in sets.items():
            found = features(pictures)
            density, coverage = density_and_coverage(real, found)
            distance = kid_with_interval(real, found, Generator().manual_seed(args.seed))
            thousandths = Mean(1000 * distance.value, 1000 * distance.half_width, distance.count)
            row = {"concepts": concepts, "judge": judge, "pictures": name, "count": len(pictures)}
            rows.append({**row, "KID x 1000": thousandths, "density": density, "coverage": coverage})
    return rows


def fitted_matcher(
    network: nn.Module, encoder: SentenceEncoder, train: Sequence[Picture], validation: Sequence[Picture], cache: Path
) -> tuple[CaptionMatcher, float]:
    """The caption judge, fitted on pictures of training concepts, and the penalty chosen on validation concepts."""
    sides = ((cached(network, pictures, cache), caption_targets(pictures, encoder)) for pictures in (train, validation))
    return fit_on_train(*sides)


def caption_rows(
    matcher: CaptionMatcher, network: nn.Module, encoder: SentenceEncoder, args: argparse.Namespace, paint
) -> tuple[list[Row], list[Picture]]:
    """Recall for seen and for held-out concepts; and what was drawn, else the real pictures, for the eye."""
    rows, shown = [], []
    for concepts, split in SETS.items():
        found = choose(args.pictures / split, args.most, args.size, random.Random(args.seed), is_drawing)
        pictures = one_per_concept(found, args.captions)
        sets = {"real (ceiling)": pictures}
        if paint is not None:
            sets = {"drawn": painted(pictures, paint), **sets}
        features = {name: cached(network, each, args.cache) for name, each in sets.items()}
        captions = encoder([picture.caption for picture in pictures])
        rows += recall_rows(concepts, matcher, features, captions, Generator().manual_seed(args.seed))
        shown += next(iter(sets.values()))[:SHOWN]
    return rows, shown


def shares(rows: Sequence[Row]) -> list[Row]:
    """Recall of what is drawn over that of the real pictures; the interval is that of the drawn alone."""
    found = []
    for concepts in SETS:
        drawn, real = (
            next(row for row in rows if (row["concepts"], row["pictures"]) == (concepts, pictures))
            for pictures in ("drawn", "real (ceiling)")
        )
        ratios = {
            name: Mean(drawn[name].value / real[name].value, drawn[name].half_width / real[name].value, drawn["of"])
            for name in drawn
            if name.startswith("recall") and real[name].value > 0
        }
        found.append({"concepts": concepts, **ratios})
    return found


def scene_rows(args: argparse.Namespace, paint: Painter | None) -> list[Row]:
    """Accuracy of colour, count and relation in composed scenes."""
    train, real = (
        choose(args.pictures / split, count, args.size, random.Random(args.seed), is_scene)
        for split, count in (("train", args.fit_scenes), ("test", args.scenes))
    )
    judge = SceneJudge.fit(train, EfficientNetFeatures(GRID))
    sets = {"real (ceiling)": real}
    if paint is not None:
        sets = {"drawn": painted(real, paint), **sets}
    return attribute_rows(judge, sets, Generator().manual_seed(args.seed))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pictures", type=Path, default=Path("data/image_pictures"), help="folders of rendered ones")
    parser.add_argument("--cache", type=Path, default=Path("runs/evaluators"), help="of features")
    parser.add_argument("--draw", action="store_true", help="draw with the checkpoint; else only the ceilings")
    parser.add_argument("--network_alone", action="store_true", help="draw without the checkpoint's memory")
    parser.add_argument("--memory_strength", type=float, help="default: the checkpoint's")
    parser.add_argument("--size", type=int, default=256, help="pixels a side, of drawn and real pictures")
    parser.add_argument("--steps", type=int, help="default: the pipeline's")
    parser.add_argument("--guidance", type=float, help="default: the pipeline's")
    parser.add_argument("--candidates", type=int, default=1, help="as `num_candidates` of the pipeline")
    parser.add_argument("--batch_size", type=int, default=1, help="more is faster where nothing is remembered")
    parser.add_argument("--num", type=int, default=300, help="pictures of each set, for KID")
    parser.add_argument("--captions", type=int, default=150, help="concepts to choose among")
    parser.add_argument("--fit_pictures", type=int, default=3000, help="of train, for the caption judge")
    parser.add_argument("--fit_scenes", type=int, default=1500, help="of train, for the attribute classifier")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--only_scenes", action="store_true", help="the attributes of scenes, nothing else")
    parser.add_argument("--most", type=int, default=2000, help="pictures of a split among which concepts are found")
    args, settings = start(parser)
    settings = {name: value for name, value in settings.items() if name not in ("pictures", "cache")}
    paint = painter(args)
    if args.only_scenes:
        notes = [f"Readers of attributes are fitted on at most {args.fit_scenes} training scenes."]
        scenes = {"Attributes of composed scenes": scene_rows(args, paint)}
        report("images_scenes", scenes, settings, notes, args.output)
        return
    network, encoder = EfficientNetFeatures(), SentenceEncoder.minilm()
    train, validation = (
        choose(args.pictures / split, count, args.size, random.Random(args.seed), is_drawing)
        for split, count in (("train", args.fit_pictures), ("validation", args.fit_pictures // 5))
    )
    unlearned = RandomFeatures().calibrated([picture.image for picture in train])
    judges = {
        "EfficientNet-lite0": lambda pictures: cached(network, pictures, args.cache),
        "random weights": lambda pictures: features_of(unlearned, [picture.image for picture in pictures]),
    }
    matcher, penalty = fitted_matcher(network, encoder, train, validation, args.cache)
    match, shown = caption_rows(matcher, network, encoder, args, paint)
    tables = {
        "Distance from real pictures": [row for name in SETS for row in distance_rows(judges, name, args, paint)],
        "Caption match: recall of the own caption": match,
    }
    if paint is not None:
        tables["Drawn over real"] = shares(match)
    tables["Attributes of composed scenes"] = scene_rows(args, paint)
    name = "images_real" if paint is None else "images_network" if args.network_alone else "images"
    name = "images_candidates" if paint is not None and args.candidates > 1 else name
    notes = [
        f"The caption judge is fitted on {len(train)} pictures of training concepts, penalty {penalty:g}; readers of "
        f"attributes on at most {args.fit_scenes} training scenes. Below the ceiling the judges err, not the pictures.",
        f"{name}_shown.png: " + "; ".join(picture.caption for picture in shown) + ".",
    ]
    report(name, tables, settings, notes, args.output)
    make_image_grid([picture.image for picture in shown], len(SETS), len(shown) // len(SETS)).save(
        args.output / f"{name}_shown.png"
    )


if __name__ == "__main__":
    main()
