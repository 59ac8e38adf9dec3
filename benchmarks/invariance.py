"""Results that do not change: batch of 1, batch of 8, padded; with the cache and without. Largest differences, printed.

    python benchmarks/invariance.py

Logits are compared on held-out text and code, on the causal path and on a canvas; texts by the same seeds token for
token. Differences of logits are those of rounding: the order of a sum changes with the shape of a batch.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from measure import Row, argument_parser, described, held_out, load_pipelines, report, start
from torch import Tensor

from hf_unified_diffusion.codecs.text_codec import TextCodec, pad_right
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline

ROWS, CONTEXT, CANVAS = 8, 40, 24


def held_out_rows(rows: list[dict], codec: TextCodec, lengths: Sequence[int], chance: random.Random) -> list[list[int]]:
    """One run of held-out tokens per length, from the starts of documents in chance order."""
    texts = [row["prompt"] + row["text"] for row in rows]
    chance.shuffle(texts)
    encoded = (codec.encode([text[:4000]])[0] for text in texts)
    long_enough = (ids for ids in encoded if len(ids) >= max(lengths))
    return [ids[:length] for length, ids in zip(lengths, long_enough, strict=False)]


def denoise(
    model: UnifiedDiffusionModel, modality: str, contexts: list[list[int]], cached: bool
) -> list[Float[Tensor, "tokens vocab"]]:
    """Logits of each row: of its context on the causal path, then of a canvas after it, every third token known."""
    ids, real = pad_right(contexts, model.config.pad_token_id or 0, model.device)
    batch = len(contexts)
    canvas = torch.full((batch, CANVAS), model.config.mask_token_id, device=model.device)
    canvas[:, ::3] = ids[:, :1]
    time = torch.full((batch,), 2 / 3, device=model.device)
    context, noisy = Segment(modality, ids, mask=real), Segment(modality, canvas, time=time)
    if cached:
        first = model(segments=[context], use_cache=True)
        causal, clean = first.logits, model(segments=[noisy], cache=first.cache).logits
    else:
        causal, clean = model(segments=[context, noisy]).predictions
    return [torch.cat([causal[i, : len(row)], clean[i]]).float() for i, row in enumerate(contexts)]


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest absolute difference of rows of logits; the mask token's are -inf in both."""
    return max((a.nan_to_num() - b.nan_to_num()).abs().max().item() for a, b in zip(left, right, strict=True))


@torch.no_grad()
def logits_table(pipelines: dict[str, UnifiedDiffusionTextPipeline], args) -> list[Row]:
    """The largest differences of logits by modality, and how large logits are."""
    table = []
    for modality, pipe in pipelines.items():
        model, codec = pipe.transformer, TextCodec(pipe.tokenizer)
        chance = random.Random(args.seed)
        lengths = [CONTEXT - 4 * i for i in range(ROWS)]
        ragged = held_out_rows(held_out(args.shards, modality), codec, lengths, chance)
        even = [row[: lengths[-1]] for row in ragged]
        alone = {name: [denoise(model, modality, [row], True)[0] for row in rows] for name, rows in
                 (("even", even), ("ragged", ragged))}  # fmt: skip
        table.append(
            {
                "modality": modality,
                "batch of 1 and of 8": difference(alone["even"], denoise(model, modality, even, True)),
                "alone and padded": difference(alone["ragged"], denoise(model, modality, ragged, True)),
                "cached and not": difference(
                    denoise(model, modality, ragged, True), denoise(model, modality, ragged, False)
                ),
                "largest logit": max(x[x.isfinite()].abs().max().item() for x in alone["even"]),
            }
        )
    return table


def texts_table(pipelines: dict[str, UnifiedDiffusionTextPipeline], args) -> list[Row]:
    """Share of tokens that a row writes alone and in a batch of eight of other lengths, seeds the same."""
    table = []
    for modality, pipe in pipelines.items():
        codec = TextCodec(pipe.tokenizer)
        rows = held_out_rows(
            held_out(args.shards, modality), codec, [CONTEXT - 4 * i for i in range(ROWS)], random.Random(args.seed)
        )
        prompts = [codec.decode(row) for row in rows]
        request = {"max_new_tokens": 32, "num_inference_steps": 8, "block_length": 16}
        generators = [torch.Generator(args.device).manual_seed(args.seed + i) for i in range(ROWS)]
        together = pipe(prompts, generator=generators, **request).completion_ids
        equal = total = 0
        for i, prompt in enumerate(prompts):
            generator = [torch.Generator(args.device).manual_seed(args.seed + i)]
            (alone,) = pipe(prompt, generator=generator, **request).completion_ids
            total += max(len(alone), len(together[i]))
            equal += sum(a == b for a, b in zip(alone.tolist(), together[i].tolist(), strict=False))
        table.append({"modality": modality, "tokens": total, "equal alone and in a batch": equal / total})
    return table


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(dtype="float32")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    args, settings = start(parser)
    pipelines = load_pipelines(args)
    tables = {
        "Largest absolute difference of logits": logits_table(pipelines, args),
        "Texts from the same seeds": texts_table(pipelines, args),
    }
    pipe = pipelines["text"]
    report("invariance", tables, settings, [described(pipe.transformer, pipe.tokenizer)], args.output)


if __name__ == "__main__":
    main()
