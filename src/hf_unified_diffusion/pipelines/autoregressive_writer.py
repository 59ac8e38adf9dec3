"""An autoregressive model behind the names of our pipelines; it writes by transformers' own `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .text_inputs import as_texts, stop_strings

DENSE_GGUF = GgufConfig(dequantize=True)


@dataclass(frozen=True)
class Written:
    """What the autoregressive model wrote.

    Attributes:
        completions: without the prompt, cut before a stop string.
        completion_ids: int64 (n_i,), the new tokens as `generate` gave them, padding left out.
    """

    completions: list[str]
    completion_ids: list[Int[Tensor, "length"]]


class EachStep(StoppingCriteria):
    """Calls a function after each token, which may raise to end the generation."""

    def __init__(self, on_step: Callable[[], None]):
        self.on_step = on_step

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.on_step()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class AutoregressiveWriter:
    """Writes with a causal language model of transformers.

    Args:
        model: anything with `generate`.
        tokenizer: of that model.

    Usage: `AutoregressiveWriter.from_pretrained("gpt2")("Once", max_new_tokens=8, seed=0).completions`
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "AutoregressiveWriter":
        """Load by name, folder or GGUF file; kwargs go to `AutoModelForCausalLM.from_pretrained`.

        Usage: `AutoregressiveWriter.from_pretrained("models/smollm2.gguf", dtype=torch.bfloat16)`
        """
        path = Path(name_or_path)
        if path.suffix != ".gguf":
            model = AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)
            return cls(model, AutoTokenizer.from_pretrained(name_or_path))
        if not path.is_file():
            raise ValueError(f"a GGUF model must be a file, got {str(path)!r}")
        kwargs.setdefault("quantization_config", DENSE_GGUF)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **kwargs)
        return cls(model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        num_return_sequences: int = 1,
        streamer: BaseStreamer | None = None,
        on_step: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> Written:
        """Write after each prompt; what is left at None is as the model's own generation config says.

        Args:
            prompt: one or several; several are padded on the left.
            temperature: 0 takes the likeliest token, above it samples.
            top_k, top_p, num_return_sequences, streamer, kwargs: as for transformers' `generate`.
            stop: strings that end a text; they are left out.
            seed: of torch's generators, restored afterwards.
            on_step: called after each token; what it raises ends the generation.

        Raises:
            ValueError: for an argument that breaks a rule.
        """
        prompts = as_texts("prompt", prompt)
        if "" in prompts:
            raise ValueError("prompt must not be empty in mode 'ar', got ''")
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_return_sequences": num_return_sequences}
        options |= sampling_options(temperature, top_k, top_p) | kwargs
        stops = None if stop is None else stop_strings(stop)
        if stops is not None:
            options |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        if on_step is not None:
            options["stopping_criteria"] = StoppingCriteriaList([EachStep(on_step)])
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(self.model.device)
        on_accelerator = [self.model.device] if self.model.device.type != "cpu" else []
        with torch.random.fork_rng(on_accelerator, enabled=seed is not None, device_type=self.model.device.type):
            if seed is not None:
                torch.manual_seed(seed)
            ids = self.model.generate(**inputs, streamer=streamer, **options)
        return self._written(ids[:, inputs["input_ids"].shape[1] :], stops or [])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Unit vectors: the mean of the last hidden states of each text's tokens.

        Usage: `writer.encode(["a cat", "a dog"]) @ writer.encode(["a kitten"]).T`
        """
        rows, texts = [], as_texts("texts", texts)
        if "" in texts:
            raise ValueError("texts must have at least one token, got an empty one")
        for text in texts:
            inputs = self.tokenizer(text, return_tensors="pt").to(self.model.device)
            hidden = self.model(**inputs, output_hidden_states=True).hidden_states[-1]
            rows.append(torch.nn.functional.normalize(hidden[0].float().mean(dim=0), dim=0))
        return torch.stack(rows).cpu()

    def _written(self, ids: Int[Tensor, "rows length"], stops: list[str]) -> Written:
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        rows = [row[: first_of(row, ends)] for row in ids.cpu()]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return Written([before_any(text, stops) for text in texts], rows)


def sampling_options(temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    """Our sampling arguments as transformers' `generate` wants them."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = {name: value for name, value in given.items() if value is not None}
    return chosen | {"do_sample": True} if chosen else {}


def first_of(row: Int[Tensor, "length"], ends: Sequence[int]) -> int:
    """Where the first of some tokens stands, the length if none does."""
    return next((i for i, token in enumerate(row.tolist()) if token in ends), len(row))


def before_any(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of some strings."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
