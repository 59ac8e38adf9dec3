"""Speed beside a plain transformers Llama of the same layers, width and vocabulary, on the same machine, taking turns.

    python benchmarks/speed.py

Generation: 128 tokens at 16 steps after a prompt of 32, against `LlamaForCausalLM.generate` (greedy, with its cache).
Training: one step (forward, backward, AdamW) of our objective against Llama's own loss, in tokens of text a second.
Neither speed depends on what the weights are, so Llama's are random. End tokens are switched off for both.
"""

import argparse
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import torch
from measure import (
    CLOCKS,
    Row,
    argument_parser,
    described,
    held_out,
    interleaved_seconds,
    load_pipelines,
    report,
    start,
)
from torch import Generator
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.codecs.text_codec import TextCodec
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.training.layouts import TokenBatch
from hf_unified_diffusion.training.machine import matmul_rate
from hf_unified_diffusion.training.objective import ObjectiveConfig, ScoreNetworkObjective, layout_for
from hf_unified_diffusion.training.run import adamw, trainable_parameters

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own log
PROMPT, NEW = 32, 128  # tokens
LLAMA = "transformers Llama, greedy"
SETTINGS: dict[str, dict[str, object]] = {
    "blocks of 32, 16 steps": {"block_length": 32},
    "blocks of 16, 16 steps": {"block_length": 16},
    "blocks of 8, 16 steps": {"block_length": 8},
    "one canvas, 16 steps": {"block_length": None},
    "drafts of 1 made ahead, checked": {"block_length": 1, "check_drafts": True, "num_inference_steps": NEW},
    "drafts of 4 in 1 step, checked": {"block_length": 4, "check_drafts": True, "num_inference_steps": NEW // 4},
    "drafts of 8 in 1 step, checked": {"block_length": 8, "check_drafts": True},
}
COUNTED = [name for name, setting in SETTINGS.items() if not setting.get("check_drafts")]  # counting takes long
# products with weights that are laid out for oneDNN are no operation that torch counts
LAID_OUT = {torch.ops.mkldnn._linear_pointwise: lambda x, *_, out_shape, **__: 2 * math.prod(out_shape) * x[-1]}
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention"),
}


def twin_of(config: UnifiedDiffusionConfig, layers: int | None = None) -> LlamaForCausalLM:
    """A Llama of the same size; all but cross-attention, time and the other modalities' parts is the same."""
    shared = (
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    )
    shape = {name: getattr(config, name) for name in (*shared, "max_position_embeddings", "tie_word_embeddings")}
    return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=layers or config.num_hidden_layers, pad_token_id=0))


def generation_functions(
    pipe: UnifiedDiffusionTextPipeline, prompt: str, temperature: float, seed: int
) -> dict[str, Callable[[], tuple[int, int]]]:
    """name -> a function that writes NEW tokens and gives their number and the passes it took."""
    ids = torch.tensor(TextCodec(pipe.tokenizer).encode([prompt]), device=pipe.device)
    model = pipe.transformer
    llama = twin_of(model.config).to(model.device, model.dtype).eval()
    llama.generation_config.eos_token_id = None

    def autoregressive() -> tuple[int, int]:
        with torch.no_grad():
            sequence = llama.generate(
                ids, attention_mask=torch.ones_like(ids), min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False
            )
        return sequence.shape[1] - ids.shape[1], NEW

    def diffusion(setting: dict[str, object]) -> Callable[[], tuple[int, int]]:
        def write() -> tuple[int, int]:
            options = {"num_inference_steps": 16, **setting}
            output = pipe(prompt, max_new_tokens=NEW, temperature=temperature, seed=seed, **options)
            return len(output.completion_ids[0]), output.num_forward_passes

        return write

    return {**{name: diffusion(setting) for name, setting in SETTINGS.items()}, LLAMA: autoregressive}


def generation_tables(pipe: UnifiedDiffusionTextPipeline, args: argparse.Namespace) -> dict[str, list[Row]]:
    """Seconds, passes and the ratio to Llama; and where the time of the settings without checks goes."""
    codec = TextCodec(pipe.tokenizer)
    text = max((row["text"] for row in held_out(args.shards, "text")), key=len)
    prompt = codec.decode(codec.encode([text[:2000]])[0][:PROMPT])
    pipe.transformer.config.eos_token_id = None  # a text that ends early would take less time
    functions = generation_functions(pipe, prompt, args.temperature, args.seed)
    seconds = interleaved_seconds(functions, args.repeats, args.clock)
    rate = matmul_rate(pipe.device, pipe.transformer.dtype)
    speeds, bounds = [], []
    for name, function in functions.items():
        with FlopCounterMode(display=False, custom_mapping=LAID_OUT) if name in COUNTED else nullcontext() as counter:
            tokens, passes = function()
        ratio = seconds[LLAMA] / seconds[name]
        speed = {"seconds": seconds[name], "tokens/s": tokens / seconds[name], "times Llama": ratio}
        speeds.append({"what": name, "tokens": tokens, "passes": passes, **speed})
        if counter is not None:
            operations = counter.get_total_flops()
            bound = {"GFLOP": operations / 1e9, "matmul bound, s": operations / rate}
            share = {"share of the bound": operations / rate / seconds[name]}
            bounds.append({"what": name, **bound, **share, **time_shares(function, pipe.device.type)})
    return {f"{NEW} tokens after a prompt of {PROMPT}": speeds, "Where the time goes": bounds}


def time_shares(function: Callable[[], object], device_type: str) -> dict[str, float]:
    """Shares of a run's time by kind of kernel; "between kernels" is Python and launches."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device_type == "cuda" else [])]
    with profile(activities=activities) as trace:
        began = perf_counter()
        function()
        total = (perf_counter() - began) * 1e6
    field = "self_device_time_total" if device_type == "cuda" else "self_cpu_time_total"
    events = [(event.key, getattr(event, field)) for event in trace.key_averages()]
    sums = {kind: sum(spent for key, spent in events if key.startswith(names)) for kind, names in KINDS.items()}
    everything = sum(spent for _, spent in events)
    total = max(total, everything)
    sums |= {"other kernels": everything - sum(sums.values()), "between kernels": total - everything}
    return {kind: spent / total for kind, spent in sums.items()}


def training_functions(config: UnifiedDiffusionConfig, args: argparse.Namespace) -> Mapping[str, Callable[[], None]]:
    """name -> one optimizer step on the same tokens."""
    device, dtype = torch.device(args.device), args.training_dtype
    generator = Generator().manual_seed(args.seed)
    tokens = torch.randint(17, config.vocab_size - 1, (args.rows, args.length), generator=generator)
    documents = (torch.arange(args.length) > args.length // 2).long().expand_as(tokens)
    batch = TokenBatch(tokens, documents, "text")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)

    def llama_step() -> Callable[[], None]:
        model = twin_of(config, args.layers).to(device).train()
        model.config.use_cache = False
        optimizer = adamw(list(model.parameters()), 0.1, 0.98)
        ids = tokens.to(device)

        def step() -> None:
            with autocast:
                loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def our_step(objective: ObjectiveConfig) -> Callable[[], None]:
        model = UnifiedDiffusionModel(type(config)(**{**config.to_dict(), "num_hidden_layers": args.layers}))
        optimizer = adamw(trainable_parameters(model.to(device).train(), ["text"]), 0.1, 0.98)
        module = ScoreNetworkObjective(model, objective)

        def step() -> None:
            parts = layout_for(batch, objective, config.mask_token_id, 1.0, generator)
            with autocast:
                loss = module([(segment.to(device), target.to(device)) for segment, target in parts])["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    blocks = ObjectiveConfig(block_lengths=(16,), infill_rate=0.0)
    return {
        "transformers Llama": llama_step(),
        "ours, causal": our_step(ObjectiveConfig(canvas=False)),
        "ours, blocks of 16": our_step(ObjectiveConfig(block_lengths=(16,), infill_rate=0.0, complementary=False)),
        "ours, blocks of 16, complementary": our_step(blocks),
        "ours, gaps": our_step(ObjectiveConfig(infill_rate=1.0)),
    }


COPIES = {"ours, blocks of 16": 2, "ours, blocks of 16, complementary": 3}  # positions of the network a token


def training_table(config: UnifiedDiffusionConfig, args: argparse.Namespace) -> list[Row]:
    """Tokens a second of a training step, and the ratio to Llama; packed documents, as in training."""
    functions = training_functions(config, args)
    seconds = interleaved_seconds(functions, args.training_repeats, args.clock)
    tokens = args.rows * args.length
    plain = seconds["transformers Llama"]
    table = []
    for name, function in functions.items():
        with FlopCounterMode(display=False) as counter:
            function()
        operations, positions = counter.get_total_flops(), tokens * COPIES.get(name, 1)
        table.append(
            {
                "what": name,
                "seconds a step": seconds[name],
                "tokens/s": tokens / seconds[name],
                "positions/s": positions / seconds[name],
                "tokens/s of Llama's": plain / seconds[name],
                "positions/s of Llama's": plain / seconds[name] * positions / tokens,
                "share of the matmul rate": operations
                / seconds[name]
                / matmul_rate(torch.device(args.device), args.training_dtype),
            }
        )
    return table


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--parts", nargs="+", choices=["generation", "training"], default=["generation", "training"])
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy, as Llama")
    parser.add_argument("--training_repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8, help="of the networks that train")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    args, settings = start(parser)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pipe = load_pipelines(args)["text"]
    model = pipe.transformer
    args.training_dtype = model.dtype
    about, config = described(model, pipe.tokenizer), UnifiedDiffusionConfig(**model.config.to_dict())
    tables: dict[str, list[Row]] = {}
    if "generation" in args.parts:
        tables |= generation_tables(pipe, args)
    if "training" in args.parts:
        tables[f"A training step of {args.layers} layers on {args.rows} rows of {args.length} tokens"] = training_table(
            config, args
        )
    rate = matmul_rate(pipe.device, model.dtype) / 1e9
    notes = [about, f"Matmul rate of this machine in this dtype: {rate:.0f} GFLOP/s (square matrices of 1536)."]
    report("speed", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
