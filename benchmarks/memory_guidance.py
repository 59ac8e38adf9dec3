"""Memory guidance: are texts nearer to what was recalled than without the memory, and than with a wrong one?

    python benchmarks/memory_guidance.py --num 200
    python benchmarks/memory_guidance.py --split validation --num 40 --strengths 1 2 4     # to choose a strength

One store of 1,000 passages of held-out documents serves all prompts; of each prompt's own document it holds a few. A
prompt is the beginning of another passage of that document. Outputs of one seed are compared: with what the store
recalls, with what it recalls for another prompt (wrong), and without a memory. Nearness is the mean cosine of MiniLM
between the completion alone and the recalled passages. The control is at strength 0 (a network with condition sources
attends to the recalled tokens at that strength, any other is told nothing); the ceiling is the document's own
continuation. Of several candidates (`--candidates`) one is chosen by the network's own likelihoods (`FromContext`),
which do not know MiniLM. Nats of the completion are SmolLM2's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from evaluators import SentenceEncoder
from jaxtyping import Float
from judge import Judge
from measure import Mean, Row, argument_parser, held_out, interleaved_seconds, load_pipelines, report, start
from torch import Tensor
from tqdm.auto import tqdm

from hf_unified_diffusion import ArrowStorage
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.memory import Memory
from hf_unified_diffusion.memory.arrow_storage import Recall
from hf_unified_diffusion.memory.memory_conditioner import ITEM, MemoryConditioner, has_sources, unit_rms
from hf_unified_diffusion.pipelines.energy_writing import by_context
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.request_options import steps_for
from hf_unified_diffusion.training.data_sources import source_model_path
from hf_unified_diffusion.training.memory_pairs import Passages, cut_passages

PROJECTED = 64


class MiniLM:
    """The sentence encoder as a store takes it."""

    name = "all-MiniLM-L6-v2"

    def __init__(self):
        self.encode = SentenceEncoder.minilm()

    def __call__(self, texts: Sequence[str]):
        return self.encode(list(texts)).float().numpy()


def passages_of(shards: Path, split: str, pipe: UnifiedDiffusionTextPipeline, args) -> Passages:
    """Held-out documents cut into passages and memories."""
    texts = [row["text"][:8000] for row in held_out(shards, "text", split)]
    chosen = torch.randperm(len(texts), generator=torch.Generator().manual_seed(args.seed)).tolist()
    ids = pipe.tokenizer([texts[i] for i in chosen], add_special_tokens=False, return_tensors=None)["input_ids"]
    documents = [torch.tensor(row).numpy() for row in ids]
    return cut_passages(documents, args.prompt_tokens + args.new_tokens, args.memory_tokens)


def written(
    pipe: UnifiedDiffusionTextPipeline, prompts: list[str], memory: dict[str, Any], seed: int, new_tokens: int
) -> list[str]:
    """Completions as the engine writes them."""
    options: dict = {"max_new_tokens": new_tokens}
    options |= steps_for(new_tokens, None, options)  # before the energies: candidates are drafts that are checked
    return pipe(prompts, **memory, seed=seed, **options).completions


def nearness(minilm: MiniLM, texts: list[str], recalls: list[Recall]) -> Float[Tensor, "texts"]:
    """Mean cosine between each text and what was recalled for it; an empty text is near to nothing."""
    vectors = torch.from_numpy(minilm([text or " " for text in texts]))
    return torch.stack(
        [
            torch.stack([torch.from_numpy(memory.embedding) @ vector for memory in recall.memories]).mean()
            for vector, recall in zip(vectors, recalls, strict=True)
        ]
    )


def share(better: Tensor, than: Tensor) -> Mean:
    """The share of texts that are nearer; equal ones are not."""
    return Mean.of((better > than).double().tolist())


def told(conditioner: MemoryConditioner, recalls: list[Recall], strength: float, candidates: int = 1) -> dict[str, Any]:
    """What the pipeline is told; at strength 0 the condition stays there, and adds nothing."""
    if strength or not has_sources(conditioner.model):
        options = conditioner.options(recalls, strength)
        return options | by_context(candidates) if options else {}
    condition = conditioner.of_memories([recall.memories for recall in recalls])
    return {"condition": replace(condition, strength=torch.zeros_like(condition.tokens[..., 0]))}


def steering(pipe, conditioner, minilm, prompts, continuations, args) -> tuple[list[Row], list[Row]]:
    """Shares of nearer outputs by strength, and the control."""
    recalls = conditioner.recall("all", prompts, k=args.num_recalled)
    wrong = recalls[len(recalls) // 2 :] + recalls[: len(recalls) // 2]
    outputs: dict[str, list[str]] = {}
    for begin in tqdm(range(0, len(prompts), args.batch_size), desc="prompts"):
        part = slice(begin, begin + args.batch_size)
        ways = {"none": None, "control": told(conditioner, recalls[part], 0.0) if begin < args.num_control else None}
        for strength in args.strengths:
            for name, of in (("right", recalls), ("wrong", wrong)):
                ways[f"{name} {strength}"] = told(conditioner, of[part], strength, args.candidates)
        for name, memory in ways.items():
            if name == "control" and memory is None:
                continue
            texts = written(pipe, prompts[part], memory or {}, args.seed + begin, args.new_tokens)
            outputs.setdefault(name, []).extend(texts)
    near = {name: nearness(minilm, texts, recalls[: len(texts)]) for name, texts in outputs.items()}
    near["ceiling"] = nearness(minilm, continuations, recalls)
    judge = None if args.no_judge else Judge.from_gguf(source_model_path())

    def nats(texts: list[str]) -> float | str:
        if judge is None:
            return ""
        rows = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text]
        scores, tokens = judge.score(rows)
        return float(scores.sum() / tokens.sum())

    rows = []
    for name, texts in (*((f"right {s}", outputs[f"right {s}"]) for s in args.strengths), ("ceiling", continuations)):
        wrong_near = near.get(name.replace("right", "wrong"))
        rows.append(
            {
                "memory": "the true continuation (ceiling)" if name == "ceiling" else f"strength {name.split()[1]}",
                "candidates": "" if name == "ceiling" else args.candidates,
                "prompts": len(prompts),
                "nearer than without": share(near[name], near["none"]),
                "nearer than with a wrong memory": "" if name == "ceiling" else share(near[name], wrong_near),
                "changed": sum(a != b for a, b in zip(texts, outputs["none"], strict=True)) / len(prompts),
                "cosine": near[name].mean().item(),
                "cosine, wrong": "" if name == "ceiling" else wrong_near.mean().item(),
                "cosine, without": near["none"].mean().item(),
                "nats a token": nats(texts),
                "nats a token, without": nats(outputs["none"]),
            }
        )
    controls = outputs.get("control", [])  # there may be none
    equal = sum(a == b for a, b in zip(controls, outputs["none"], strict=False))
    return rows, [{"prompts": len(controls), "equal to the text without, at strength 0": equal}]


def costs(conditioner: MemoryConditioner, recall: Recall, repeats: int) -> list[Row]:
    """Milliseconds of what a memory adds to a request."""
    model = conditioner.model
    vectors = unit_rms(torch.randn(1, PROJECTED, model.config.hidden_size)).to(model.dtype)
    memories: list[Memory] = list(recall.memories)
    read = min(len(memories), conditioner.num_read)
    with torch.no_grad():
        if has_sources(model):
            ways: dict[str, Callable] = {
                f"project {PROJECTED} vectors": lambda: model.condition_projections[ITEM](vectors),
                f"read and project {read} texts": lambda: conditioner.of_memories([memories]),
            }
        else:
            (ids,) = conditioner.codec.encode([conditioner.context(memories)])
            segment = Segment("text", torch.tensor([ids], device=model.device))
            ways = {f"read {read} texts, {len(ids)} tokens": lambda: model.features([segment], use_cache=True)}
        return [{"work": name, "ms": 1e3 * s} for name, s in interleaved_seconds(ways, repeats).items()]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--num", type=int, default=200, help="of prompts")
    parser.add_argument("--num_stored", type=int, default=1000)
    parser.add_argument("--num_recalled", type=int, default=4)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--candidates", type=int, default=2, help="as `memory_candidates` of the engine")
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--memory_tokens", type=int, default=48)
    parser.add_argument("--num_control", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--no_judge", action="store_true", help="leave out the nats of SmolLM2")
    args, settings = start(parser)
    pipe, minilm = load_pipelines(args)["text"], MiniLM()
    passages = passages_of(args.shards, args.split, pipe, args)
    own = passages.row_document.unique_consecutive(return_counts=True)[1].cumsum(0)  # one prompt a document
    rows = passages.rows[torch.cat([torch.zeros(1, dtype=torch.int64), own[:-1]])][: args.num]
    if len(rows) < args.num:
        raise ValueError(f"num must be at most the number of long documents, {len(rows)}, got {args.num}")
    prompts, continuations = (
        [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in part]
        for part in (rows[:, : args.prompt_tokens], rows[:, args.prompt_tokens :])
    )
    items = [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in passages.items[: args.num_stored]]
    with TemporaryDirectory() as folder, ArrowStorage(folder, minilm) as storage:
        storage.add("all", items, source="benchmark")
        conditioner = MemoryConditioner(pipe.transformer, pipe.tokenizer, storage, num_read=args.num_recalled)
        found, control = steering(pipe, conditioner, minilm, prompts, continuations, args)
        timed = costs(conditioner, conditioner.recall("all", prompts[:1], k=args.num_recalled)[0], repeats=20)
    notes = [f"{len(items)} memories of {args.memory_tokens} tokens, {args.num_recalled} recalled; {args.split} split."]
    tables = {"Steering": found, "Control": control, "What it costs": timed}
    report("memory_guidance", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
