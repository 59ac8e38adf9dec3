"""Write a checkpoint's model card from its metadata, the corpus report and the benchmark results; no number by hand.

python examples/write_model_card.py              # the embedded checkpoint, to model_cards/ and into its folder
"""

import argparse
import json
from pathlib import Path

from huggingface_hub import ModelCardData

from hf_unified_diffusion.conditioning.picture_memory import PictureMemory
from hf_unified_diffusion.modeling.checkpoint_metadata import limits_of
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.pipelines.checkpoints import load_picture_memory

ROOT = Path(__file__).parents[1]
TITLES = {
    "perplexity": "Held-out likelihood",
    "perplexity_pair": "A controlled pair from scratch",
    "generation": "Generation",
    "infilling": "Infilling",
    "speed": "Speed",
    "invariance": "Invariance",
    "engine": "The engine",
    "schema": "Schemas",
    "images": "Pictures",
    "images_network": "Pictures by the network alone",
    "image_codec": "Pictures encoded and decoded again",
    "vocoder": "Speech encoded and decoded again",
    "speech": "Speech",
}
LIMITS = """\
- English and Python only, from a small corpus: public-domain prose (much of it old), documentation, dictionary entries
  and permissively licensed Python (the table of data says which). It knows few facts, and states wrong ones fluently.
- Trained for {minutes:.0f} minutes, on what the table of training names: it shows the machinery at work and is no
  writer to rely on.
{limits}
- It inherits what its source model learned, biases included. Generated code may parse and still be wrong or unsafe."""
USE = """\
```python
import hf_unified_diffusion
from transformers import pipeline

write = pipeline("unified-diffusion")
checked = {"check_drafts": True, "block_length": 4, "num_inference_steps": 32}
print(write("The history of the bicycle", **checked)[0]["generated_text"])
```"""


def front_matter(metadata: dict) -> str:
    """The YAML head that the Hub reads."""
    card = ModelCardData(
        language="en",
        license=metadata["license"],
        library_name="hf_unified_diffusion",
        tags=["unified-diffusion", "masked-diffusion", "text-generation", "code"],
        base_model=metadata["base_model"],
    )
    return f"---\n{card.to_yaml()}\n---"


def data_section(report: dict, used: list[str]) -> str:
    """The sources that were trained on, all if none is named, with their licences and size."""
    lines = ["| source | licences | train MB |", "|---|---|---|"]
    for name, source in report["sources"].items():
        if used and name not in used:
            continue
        size = source["splits"]["train"]["bytes"] / 1e6
        lines.append(f"| {name} | {', '.join(source['licences'])} | {size:.2f} |")
    return "\n".join(lines)


def memory_section(memory: PictureMemory | None) -> list[str]:
    """The sources of the remembered pictures, which the checkpoint holds, with their licences."""
    if memory is None:
        return []
    lines = ["| remembered pictures of | licence | pictures |", "|---|---|---|"]
    lines += [f"| {one['name']} | {one['licence']} | {one['pictures']:,} |" for one in memory.metadata["sources"]]
    return ["Drawings that lead what is drawn (`docs/images.md`), and that the checkpoint holds:", "\n".join(lines)]


def training_section(metadata: dict) -> str:
    """Compute of each stage."""
    columns = ("stage", "on", "optimizer steps", "data tokens", "positions", "minutes", "FLOPs")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, stage in metadata["training"].items():
        device = stage.get("device", "one CPU core")
        positions = stage["positions"]
        flops = stage.get("flops", 6 * metadata["parameters"] * positions)
        lines.append(
            f"| {name} | {device} | {stage['step']} | {stage.get('tokens', positions):,} | {positions:,} "
            f"| {stage['seconds'] / 60:.0f} | {flops:.1e} |"
        )
    return "\n".join(lines)


def result_sections(results: Path) -> list[str]:
    """The tables of the benchmarks that were run, one heading below their own."""
    sections = []
    for name, title in TITLES.items():
        for path in sorted(results.glob(f"**/{name}.md"))[:1]:  # the report has a folder for each benchmark
            body = path.read_text().partition("\n")[2].replace("\n## ", "\n#### ").strip()
            script = name if (ROOT / "benchmarks" / f"{name}.py").exists() else name.partition("_")[0]
            sections.append(f"### {title} (`benchmarks/{script}.py`)\n\n{body}")
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--output", type=Path, default=ROOT / "model_cards" / "unified-diffusion-edge.md")
    args = parser.parse_args()
    metadata = json.loads((args.checkpoint / "metadata.json").read_text())
    shape, quantization = metadata["diffusion_config"], metadata["quantization"]
    corpus = json.loads((ROOT / "benchmarks" / "data_report.json").read_text())
    sections = [
        front_matter(metadata),
        "# unified-diffusion-edge",
        "One diffusion transformer for text, Python code, speech and faces and, after remembered drawings, pictures: "
        f"{metadata['parameters'] / 1e6:.1f}M parameters, {metadata['trunk_share']:.1%} of them in the shared trunk; "
        f"{shape['num_layers']} layers of {shape['hidden_dim']}; {quantization['bits_per_weight']} bits per weight. It "
        f'starts from {metadata["base_model"]} and is the default of `pipeline("unified-diffusion")`.',
        USE,
        "## Training",
        training_section(metadata),
        "![curves](edge_training.png)",
        "How to reproduce: `make data`, then the commands in `docs/training.md`.",
        "## Data",
        "Drawn at random from the sources below (`make data`; permissive or public domain only), text and code "
        "in equal shares, as many tokens as the table of training says.",
        data_section(corpus, metadata["training_sources"]),
        *memory_section(load_picture_memory(args.checkpoint)),
        "## Numbers",
        *result_sections(args.results),
        "## Intended use and limits",
        LIMITS.format(
            minutes=sum(stage["seconds"] for stage in metadata["training"].values()) / 60,
            limits="\n".join(f"- {limit}" for limit in limits_of(metadata, sorted(metadata.get("limits", {})))),
        ),
    ]
    text = "\n\n".join(sections) + "\n"
    args.output.write_text(text)
    (args.checkpoint / "README.md").write_text(text.replace("![curves](edge_training.png)\n\n", ""))


if __name__ == "__main__":
    main()
