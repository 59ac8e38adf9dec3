"""The table of the report: which benchmarks run, and which of their numbers it shows, each with floor and noise.

A floor is the number that an issue asks for (`line` says "issue.line" of its list); a figure without one is watched and
gated all the same.
"""

from collections.abc import Mapping
from typing import Any

from figure_table_media import MEDIA
from figures import Figure, Job, Source, exact, interval, relative, relative_interval, share_of
from figures import two_percent_of_perplexity as two_percent

EMBEDDED = "src/hf_unified_diffusion/assets/unified-diffusion-edge"
CONTROLNETS = f"{EMBEDDED}/controlnets"
TOOLS, REASONING = (
    (f"--{name}", f"{CONTROLNETS}/{name}", "--ways", "drafts checked") for name in ("tools", "reasoning")
)
SHARDS, PICTURES = "data/shards/test", "data/image_pictures/test"
CODEC = f"{EMBEDDED}/vae"
SPEECH, VOCODER = "data/speech/test", f"{EMBEDDED}/vocoder"
CHECKED, BLOCKS = "checked drafts of 8, 1 step", "blocks of 4, 1 token a step"
LENGTHS = "--code_tokens 160 --top_p 0.9 --settings"
FEW_SCHEMAS = "--num 60 --baseline_every 20 --retries 1 --parts validity"
FEW_PICTURES = "--num 100 --captions 50 --fit_pictures 1000 --fit_scenes 400 --scenes 80"

JOBS: dict[str, Job] = {
    "perplexity": Job(
        "perplexity.py",
        full=("--draws", "4", "--longest_exact", "4"),
        quick=("--draws", "1", "--longest_exact", "4", "--rows", "16", "--no_source"),
        needs=(SHARDS,),
    ),
    "perplexity_pair": Job("perplexity.py", ("--pair", "runs/pair"), None, (SHARDS, "runs/pair/pair.json")),
    "generation": Job(
        "generation.py",
        full=(*LENGTHS.split(), CHECKED, BLOCKS),
        quick=(*LENGTHS.split(), CHECKED, "--num_functions", "20", "--num_texts", "10"),
        needs=(SHARDS,),
        samples=("The first ones",),
    ),
    "infilling": Job(
        "infilling.py",
        quick=("--num_gaps", "40", "--candidates", "2", "--draws", "1"),
        needs=(SHARDS,),
        samples=("Some gaps",),
    ),
    "schema": Job("schema.py", quick=(*FEW_SCHEMAS.split(),)),
    "invariance": Job("invariance.py", needs=(SHARDS,)),
    "speed": Job("speed.py", quick=("--parts", "generation", "--repeats", "1")),
    "latency": Job("latency.py", quick=("--ways", "INT2 Parquet", "--repeats", "3", "--no-breakdown")),
    "loading": Job("loading.py", quick=("--repeats", "3")),
    "edge_memory": Job("edge_memory.py", needs=("data/shards/validation",)),
    "engine": Job("engine.py", quick=("--callers", "8"), needs=(SHARDS,)),
    "memory": Job("memory.py", quick=None),
    "memory_guidance": Job(
        "memory_guidance.py",
        full=("--num", "200", "--strengths", "2"),
        quick=("--num", "24", "--num_control", "8", "--strengths", "2", "--no_judge"),
        needs=(SHARDS,),
    ),
    "memory_pictures": Job("memory_pictures.py", (), ("--num", "24", "--num_control", "8"), (PICTURES, CODEC)),
    "memory_crashes": Job("memory_crashes.py", quick=None),
    "image_latency": Job("image_latency.py", quick=("--repeats", "1")),
    "image_codec": Job("image_codec.py", quick=("--num", "16", "--sizes", "128", "256"), needs=(PICTURES, CODEC)),
    "vocoder": Job("vocoder.py", quick=("--rows", "4"), needs=(SPEECH, VOCODER)),
    "images": Job("images.py", ("--draw",), ("--draw", *FEW_PICTURES.split()), (PICTURES, CODEC)),
    "speech": Job("speech.py", quick=("--rows", "24"), needs=(SPEECH, VOCODER)),
    "speech_latency": Job("speech_latency.py", quick=("--repeats", "1"), needs=(VOCODER,)),
    "avatar": Job("avatar.py", ("--generate",), ("--generate", "--num_clips", "16"), (SPEECH, VOCODER)),
    "controlnets_tools": Job("controlnets.py", (*TOOLS, "--num", "100"), (*TOOLS, "--num", "12"), (CONTROLNETS,)),
    "controlnets_reasoning": Job(
        "controlnets.py", (*REASONING, "--num", "100"), (*REASONING, "--num", "12"), (CONTROLNETS,)
    ),
    "energies": Job("energies.py", quick=("--num", "6", "--tokens", "16")),
}


def likelihoods() -> list[Figure]:
    """How likely held-out text and code are."""
    held_out, figures = "Held-out likelihood", []
    bound = Source("perplexity", held_out, "lower", relative_interval("nats per token"), "2.6")
    causal = Source("perplexity", held_out, "lower", two_percent, "2.6, 4.5, 5.8")
    pair = Source("perplexity_pair", held_out, "lower", relative_interval("nats per token"), "2.5")
    for data in ("text", "code"):
        source = {"model": "SmolLM2-135M-Instruct, the source", "data": data}
        for way in ("causal, exact", "blocks of 4, bound", "full sequence, bound"):
            row = {"model": "checkpoint", "data": data, "read as": way}
            figure = (causal if way == "causal, exact" else bound).figure
            figures.append(figure(f"Held-out {data}, bits per byte: {way}", row, "bits per byte", ceiling=source))
        for way in ("blocks of 4, bound", "blocks of 16, bound", "full sequence, bound"):
            row = {"model": "diffusion", "data": data, "read as": way}
            name = f"From scratch, {data}, perplexity over the autoregressive twin's: {way}"
            figures.append(pair.figure(name, row, "ratio to the twin", 1.20, control=1.0))
    return figures


def writing() -> list[Figure]:
    """What is written, and how gaps are filled."""
    functions = Source("generation", "Functions from held-out docstrings", "higher", share_of("functions"), "2.6")
    prose = "Prose after held-out beginnings"
    likely = Source("generation", prose, "lower", relative(0.15), "2.6")
    varied = Source("generation", prose, "higher", interval("unigram entropy"), "2.6")
    gains = Source("infilling", "Gain over left to right, nats per gap: diffusion", "higher", interval("all"), "2.7")
    counted = Source("infilling", "Given tokens", "lower", exact, "2.7")
    checked, real = {"setting": CHECKED}, {"setting": "the real body"}
    mixed, shuffled = (
        {"setting": f"control: {what} shuffled"} for what in ("tokens of the real body", "the real tokens")
    )
    figures = [
        functions.figure("Functions that parse as written", checked, "parses as written", 0.6, real, mixed),
        functions.figure("Functions that add a statement", checked, "and adds a statement", None, real, mixed),
        gains.figure(
            "Infilling, nats gained of the suffix", {"score": "own causal path: suffix after fill"}, "all", 0.0
        ),
        gains.figure("Infilling, nats gained by SmolLM2", {"score": "SmolLM2: suffix after fill"}, "all"),
        counted.figure("Infilling, given tokens changed", {}, "given sides changed", 0.0),
    ]
    for setting in (CHECKED, BLOCKS):
        row = {"setting": setting}
        figures.append(
            likely.figure(
                f"Prose, SmolLM2 perplexity over the real text's: {setting}", row, "ratio", 2.0, 1.0, shuffled
            )
        )
        figures.append(
            varied.figure(f"Prose, unigram entropy: {setting}", row, "unigram entropy", None, None, shuffled)
        )
    return figures


def tolerance(row: Mapping[str, Any], value: float) -> float:
    """Logits of float32 differ by rounding; so much more is not a fall."""
    return 1e-4


def guarantees() -> list[Figure]:
    """What holds always, counted."""
    valid = Source("schema", "Texts that parse and validate", "higher", exact, "7.1")
    overhead = Source("schema", "128 tokens at 16 steps", "lower", relative(0.1), "7.2")
    logits = Source("invariance", "Largest absolute", "lower", tolerance, "2.8")
    equal = Source("invariance", "Texts from the same seeds", "higher", exact, "2.8")
    sides = Source("engine", "The autoregressive side", "higher", exact, "6.2")
    tokenizing = Source("engine", "Tokenizing", "higher", relative(0.15), "6.9")
    crashes = Source("memory_crashes", "Writers killed", "lower", exact, "6.5")
    figures = []
    for steps in (1, 4, 16):
        free, bound = ({"steps": steps, "way": way} for way in ("unconstrained", "constrained"))
        figures.append(valid.figure(f"Schemas, texts that validate: {steps} steps", bound, "validate", 1.0, 1.0, free))
    for name, canvas in (("blocks of 32", 32), ("one canvas", "one canvas")):
        row = {"blocks": canvas, "schema": "a person"}
        figures.append(overhead.figure(f"Schemas, time over unconstrained: {name}", row, "ratio", 1.10, 1.0))
    for modality in ("text", "code"):
        row = {"modality": modality}
        for column in ("batch of 1 and of 8", "alone and padded", "cached and not"):
            figures.append(logits.figure(f"Invariance of logits, {modality}: {column}", row, column, 1e-3, 0.0))
        column = "equal alone and in a batch"
        figures.append(equal.figure(f"Invariance, {modality}, tokens {column}", row, column, 1.0, 1.0))
    truth = {"memory": "the true continuation (ceiling)"}
    for column, best in (("nearer than without", truth), ("nearer than with a wrong memory", None)):
        steered, row = (
            Source("memory_guidance", "Steering", "higher", interval(column), "6.3"),
            {"memory": "strength 2.0"},
        )
        figures.append(steered.figure(f"Memory at strength 2, texts {column}", row, column, 0.8, best, 0.5))
    packing = Source("engine", "Tokenizing training texts", "higher", relative(0.15), "6.9")
    prose = {"modality": "text", "way": "as data are packed"}
    column, one = "equal to transformers' generate", {"way": "one text a call"}
    return [
        *figures,
        sides.figure(f"Engine, greedy texts {column}, of 5", {"setting": "greedy"}, column, 5.0, 5.0),
        tokenizing.figure("Tokenizing, one text a call: over plain Python", one, "times plain Python", 10.0, None, 1.0),
        packing.figure("Tokenizing training texts: over plain Python", prose, "times plain Python", 10.0, None, 1.0),
        crashes.figure("Memory, rows lost in crashes", {}, "lost", 0.0, 0.0),
        crashes.figure("Memory, wrong answers after crashes", {}, "wrong answers", 0.0, 0.0),
    ]


def resources() -> list[Figure]:
    """Time, memory and size."""
    writes = Source("speed", "128 tokens after a prompt of 32", "higher", relative(0.15), "2.9")
    trains = Source("speed", "A training step", "higher", relative(0.1), "2.9")
    latency = Source("latency", "128 tokens in 4 steps", "lower", relative(0.15), "3.5")
    ready = Source("loading", "Ready", "lower", relative(0.5), "3.2")
    copied = Source("loading", "Memory", "lower", lambda row, value: 0.005, "3.2")
    size = Source("edge_memory", "Size", "lower", exact, "3.7, 9.3")
    resident = Source("edge_memory", "Memory", "lower", relative(0.05), "3.7")
    fast, causal, blocks = ({"what": w} for w in ("blocks of 32, 16 steps", "ours, causal", "ours, blocks of 16"))
    llama, in_memory = (
        {"what": "bf16 safetensors, Llama of transformers"},
        {"loader": "control: safetensors into memory"},
    )
    opened, header, theirs = ({"loader": n} for n in ("Parquet, touch, opened", "Parquet, header", "safetensors"))
    shipped, two_bits, dense = ({"weights": w} for w in ("as shipped", "INT2, edge policy", "float32"))
    figures = [
        writes.figure("Speed, times a Llama's: 128 tokens at 16 steps", fast, "times Llama", 3.0, None, 1.0),
        trains.figure("Training, tokens/s of a Llama's: causal", causal, "tokens/s of Llama's", 0.9, None, 1.0),
        trains.figure("Training, positions/s of a Llama's: blocks", blocks, "positions/s of Llama's", 0.9, None, 1.0),
        ready.figure("Loading 429 MB, ms", opened, "ready, ms", 50.0, theirs, in_memory),
        copied.figure("Loading, anonymous memory of the file", header, "of the file", 0.02, 0.0, in_memory),
        size.figure("Weight file at two bits, MB", two_bits, "weight file (MB)", 35.0, None, dense),
        resident.figure(
            "Resident memory within 2 GB, as shipped, MB", shipped, "peak resident (MB)", 2000.0, None, dense
        ),
    ]
    for canvas in ("one canvas", "blocks of 32"):
        row = {"what": "INT2 Parquet", "canvas": canvas}
        name = f"Latency of 350M at two bits, 128 tokens in 4 steps, ms: {canvas}"
        figures.append(latency.figure(name, row, "median ms", 500.0, None, llama))
    drawn = Source("image_latency", "512 x 512 pixels", "lower", relative(0.15), "4.4")
    for network, floor in (("embedded checkpoint", 5.0), ("workstation tier, random weights", 30.0)):
        figures.append(drawn.figure(f"Drawing 512 x 512, s: {network}", {"network": network}, "median s", floor))
    for memories, floor in ((100_000, 25.0), (1_000_000, 5.0)):
        row = {"structure": "directions", "memories": memories}
        query = Source("memory", "Queries", "lower", relative(0.25), "6.4")
        recall = Source("memory", "Queries", "higher", relative(0.01), "6.4")
        figures.append(query.figure(f"Memory of {memories}, query, ms", row, "search (ms)", floor))
        figures.append(recall.figure(f"Memory of {memories}, recall at 10", row, "recall at 10", 0.95, 1.0))
    return figures


def steering() -> list[Figure]:
    """What ControlNets and energies do."""
    calls = Source("controlnets_tools", "Calls of tools", "higher", interval("right values"), "7.4")
    gains = Source("controlnets_tools", "Calls of tools", "higher", interval("right values, less schema alone"), "7.4")
    questions = Source("controlnets_reasoning", "Questions", "higher", share_of("questions"), "7.4")
    figures = []
    for split, what in (("test", "tools as in training"), ("unseen", "of other actions")):
        under, alone = ({"split": split, "with": way} for way in ("ControlNet", "schema alone"))
        name = f"Right values of calls under the ControlNet: {what}"
        figures.append(calls.figure(name, under, "right values", None, 1.0, alone))
        figures.append(gains.figure(f"{name}, less schema alone", under, "right values, less schema alone", 0.0))
    under, alone = ({"with": way} for way in ("ControlNet", "prompt alone"))
    figures.append(questions.figure("Answers in the structure", under, "structure", 0.95, 1.0, alone))
    right = Source("controlnets_reasoning", "Questions", "higher", interval("right answers"), "7.4")
    moved = Source("energies", "Texts of", "higher", share_of("could move"), "7.6")
    figures.append(right.figure("Right answers to questions", under, "right answers", None, 1.0, alone))
    for wish in ("forbidden words", "required words", "length, 6 to 9 tokens", "causal likelihood, 32 candidates"):
        figures.append(moved.figure(f"Energies, texts that move: {wish}", {"wish": wish}, "moved", 0.95, 1.0, 0.0))
    return figures


FIGURES: tuple[Figure, ...] = (
    *likelihoods(),
    *writing(),
    *guarantees(),
    *resources(),
    *steering(),
    *MEDIA,
)
