"""The score network: one shared transformer that answers, for every modality, "what is the clean sample?"."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from ..contracts import Condition, Segment
from ..hub import CardFacts
from ..quantization import num_weights
from .attention_rule import ContextCache, TokenRoles, attention_dtype, plan_attention
from .autoregressive import (
    check_kept_ids,
    check_layers,
    config_from_autoregressive,
    evenly_kept_layers,
    load_mapped,
    map_weights,
    whole_vocabulary,
)
from .checkpoint_metadata import (
    METADATA_NAME,
    carried_facts,
    check_metadata,
    checkpoint_metadata,
    read_metadata,
    write_metadata,
)
from .checks import check_labels, check_segments
from .configuration_unified_diffusion import UnifiedDiffusionConfig, check_modality, check_source
from .control_pass import Control, ControlPass, check_controls
from .embedded import EMBEDDED_CHECKPOINT
from .embeddings import PreciseLinear, TimeEmbedding
from .heads import ContinuousHead, TokenEmbedding, TokenHead, WienerSkip
from .local_decoder import LocalDecoder
from .offloading import present
from .parquet_weights import HUB_KEYS, find_file
from .pretrained import UnifiedDiffusionOutput, UnifiedDiffusionPreTrainedModel
from .segments import layout
from .shared_transformer import SharedTransformer
from .token_loss import IGNORED_LABEL as IGNORED_LABEL
from .token_loss import token_loss
from .vocabulary import truncate_bpe

TOKENIZER_KWARGS = ("gguf_file", "revision", "cache_dir", "token", "local_files_only", "subfolder")


class UnifiedDiffusionModel(UnifiedDiffusionPreTrainedModel):
    """One diffusion transformer for text, code, images, audio and avatars.

    Usage:
        logits = model(prompt_ids).logits                                # causal: position i predicts token i + 1
        logits = model(canvas_ids, timestep=torch.tensor([0.5])).logits  # canvas: position i predicts token i
        model(segments=[Segment("text", ids), Segment("audio", x_t, time=t)]).predictions
    """

    def __init__(self, config: UnifiedDiffusionConfig):
        super().__init__(config)
        self.token_embedding = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.unembedding = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.time_embedding = TimeEmbedding(config)
        self.modality_embedding = nn.ParameterDict()
        self.projections = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.skips = nn.ModuleDict()
        self.decoders = nn.ModuleDict()
        for name, spec in sorted(config.modalities.items()):  # as config.json sorts them: optimizers count parameters
            self._build_modality(name, spec)
        self.condition_projections = nn.ModuleDict(
            {
                name: PreciseLinear(width, config.condition_size)
                for name, width in sorted(config.condition_sources.items())
            }
        )
        self.shared_transformer = SharedTransformer(config)
        self.checkpoint_facts: dict[str, Any] = {}  # of metadata.json: licence, training, supported modalities, ...
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As transformers' own; without a name the embedded checkpoint, see `ParquetWeightsMixin` for Parquet files.

        Usage: `UnifiedDiffusionModel.from_pretrained()`
        """
        name = pretrained_model_name_or_path
        if name is None and "state_dict" not in kwargs and kwargs.get("config") is None:
            name = EMBEDDED_CHECKPOINT
        facts = cls._facts_of(name, kwargs)
        loaded = super().from_pretrained(name, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).checkpoint_facts = facts
        return loaded

    @classmethod
    def _facts_of(cls, name: str | os.PathLike[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What `metadata.json` beside the weights says that does not follow from the model; {} without one."""
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        file = None if name is None or "state_dict" in kwargs else find_file(name, METADATA_NAME, hub)
        if file is None:
            return {}
        metadata = read_metadata(file)
        check_metadata(metadata, UnifiedDiffusionConfig.from_pretrained(name, **hub))
        return carried_facts(metadata)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As `ParquetWeightsMixin.save_pretrained`, and `metadata.json` beside, with what was loaded from one.

        The main process alone pushes (`push_to_hub=True`, see `PushMixin`).
        """
        kwargs["push_to_hub"] = kwargs.get("push_to_hub", False) and is_main_process
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and not getattr(self, "_hf_peft_config_loaded", False):
            write_metadata(save_directory, checkpoint_metadata(self, **self.checkpoint_facts))

    def card_facts(self) -> CardFacts:
        """Of `metadata.json`: size, trained modalities, licence, source, and what `evaluation` holds."""
        metadata = checkpoint_metadata(self, **self.checkpoint_facts)
        facts, told = super().card_facts(), self.checkpoint_facts
        numbers = {
            **facts.numbers,
            "share of parameters in the trunk": metadata["trunk_share"],
            "trained modalities": metadata["supported_modalities"],
            "optimizer steps": sum(stage["step"] for stage in told.get("training", {}).values()) or None,
            **told.get("evaluation", {}),
        }
        return replace(
            facts,
            what="One diffusion transformer for text and code, and for every modality it has a head for.",
            numbers=numbers,
            license=told.get("license"),
            base_model=told.get("base_model"),
            tags=["masked-diffusion", "text-generation"],
        )

    @classmethod
    def from_autoregressive(
        cls,
        name_or_path: str,
        vocab_size: int | None = None,
        num_hidden_layers: int | None = None,
        layers: Sequence[int] | None = None,
        **kwargs,
    ) -> "UnifiedDiffusionModel":
        """Start from a Llama, Qwen2 or Qwen3 checkpoint of transformers.

        Args:
            name_or_path: what `AutoModelForCausalLM.from_pretrained` takes; `kwargs` go there too (`gguf_file=...`).
            vocab_size: keep that many tokens of a byte-level BPE (see `truncate_bpe`); None keeps all and adds a mask.
            num_hidden_layers: keep that many layers, spread evenly, or name them by `layers`; None keeps all.

        With the whole vocabulary and all layers the causal path gives the source's logits. Raises ValueError for other
        architectures and for numbers out of range.

        Usage: `UnifiedDiffusionModel.from_autoregressive("HuggingFaceTB/SmolLM2-135M", vocab_size=8192)`
        """
        if "gguf_file" in kwargs:  # else transformers may leave the weights in blocks of GGUF
            kwargs.setdefault("quantization_config", GgufConfig(dequantize=True))
        source = AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)
        if vocab_size is None:
            kept_ids = whole_vocabulary(source.config.vocab_size)
        else:
            names = {key: kwargs[key] for key in TOKENIZER_KWARGS if key in kwargs}
            kept_ids = truncate_bpe(AutoTokenizer.from_pretrained(name_or_path, **names), vocab_size)[1]
        return cls.from_source(source, kept_ids, num_hidden_layers, layers)

    @classmethod
    def from_source(
        cls,
        source: PreTrainedModel,
        kept_ids: Int[Tensor, "vocab"],
        num_hidden_layers: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> "UnifiedDiffusionModel":
        """As `from_autoregressive`, from a model in memory; kept_ids[i] is the source's id of token i, -1 if new."""
        check_kept_ids(kept_ids, source.config.vocab_size)
        available = source.config.num_hidden_layers
        if layers is None:
            layers = evenly_kept_layers(available, available if num_hidden_layers is None else num_hidden_layers)
        layers = check_layers(layers, available)
        config = config_from_autoregressive(
            source.config, len(layers), vocab_size=len(kept_ids), mask_token_id=len(kept_ids) - 1
        )
        model = cls(config)
        load_mapped(model, map_weights(source, layers, kept_ids))
        return model

    def _build_modality(self, name: str, spec: dict) -> None:
        config = self.config
        self.modality_embedding[name] = nn.Parameter(torch.zeros(config.hidden_size))
        if spec["kind"] == "token":
            self.heads[name] = TokenHead(config)
        else:
            self.projections[name] = PreciseLinear(spec["width"], config.hidden_size)
            self.heads[name] = ContinuousHead(config, spec["width"])
        if "skip_axes" in spec:
            self.skips[name] = WienerSkip(spec["width"], spec["skip_axes"])
        if "decoder" in spec:
            self.decoders[name] = LocalDecoder(config.hidden_size, spec["width"], **spec["decoder"])

    def add_modality(self, name: str, kind: str = "continuous", width: int | None = None) -> None:
        """Give the network a new modality: an embedding, a projection and a head; nothing else changes.

        Usage: `model.add_modality("depth", width=64)`; raises ValueError if the name is taken or the spec is wrong.
        """
        if name in self.heads:
            raise ValueError(f"modality {name!r} exists; the model has {sorted(self.heads)}")
        self._start_modality(name, {"kind": kind} if kind == "token" else {"kind": kind, "width": width})

    def resize_modality(self, name: str, width: int) -> None:
        """Give a continuous modality that was not trained yet the width of its codec; a width it has is left alone.

        Raises:
            ValueError: the name is no continuous modality, the width is not positive, or the head is trained (it is no
                longer zero) or quantized.

        Usage: `model.resize_modality("image", 32)`
        """
        self._check_continuous(name)
        spec = {"kind": "continuous", "width": width}
        check_modality(name, spec)
        if width == self.config.modalities[name]["width"]:
            return
        head = self.heads[name]
        if not isinstance(head, ContinuousHead) or bool(head.weight.any() | head.bias.any()):
            raise ValueError(
                f"only an untrained modality can change its width, got {name!r} with a trained or quantized head of "
                f"width {self.config.modalities[name]['width']}, and {width}"
            )
        self._start_modality(name, spec)

    def _check_continuous(self, name: str) -> None:
        if name not in self.projections:
            raise ValueError(f"name must be a continuous modality of {sorted(self.projections)}, got {name!r}")

    def _start_modality(self, name: str, spec: dict) -> None:
        check_modality(name, spec)
        self.config.modalities = {**self.config.modalities, name: spec}
        for part in (self.skips, self.decoders):  # fitted to tokens of another width
            if name in part:
                del part[name]
        self._build_modality(name, spec)
        like = self.shared_transformer.norm.weight
        for part in (self.heads, self.projections):
            if name in part:
                part[name].to(like.device, like.dtype).apply(self._init_weights)
        self.modality_embedding[name].data = self.modality_embedding[name].data.to(like)

    def add_skip(self, name: str, axes: Float[Tensor, "width axes"], variances: Float[Tensor, "axes"]) -> None:
        """Correct what the network says of a continuous modality by its noisy tokens themselves, see `WienerSkip`.

        Args:
            axes: orthonormal columns.
            variances: of what the network leaves over along each (`training.skip_fitting.fitted_skip` measures them).

        Usage: `model.add_skip("image", *fitted_skip(model, batches, num_axes=128))`; raises ValueError where the name
        is no continuous modality, or for other shapes.
        """
        self._check_continuous(name)
        width = self.config.modalities[name]["width"]
        if axes.ndim != 2 or axes.shape[0] != width or variances.shape != axes.shape[1:]:
            raise ValueError(
                f"axes must be ({width}, n) with n variances, got {tuple(axes.shape)} and {tuple(variances.shape)}"
            )
        spec = {**self.config.modalities[name], "skip_axes": axes.shape[1]}
        check_modality(name, spec)
        self.config.modalities = {**self.config.modalities, name: spec}
        skip = WienerSkip(*axes.shape)
        skip.axes.copy_(axes)
        skip.variances.copy_(variances)
        like = self.shared_transformer.norm.weight
        self.skips[name] = skip.to(like.device, like.dtype)

    def add_decoder(self, name: str, frames: int, channels: int, intermediate_size: int, num_blocks: int) -> None:
        """Give a continuous modality a decoder along time, see `LocalDecoder`; what it has is started anew.

        It starts at zero: nothing changes until it is trained (`examples/train_decoder.py`).

        Args:
            frames: of a token, one after another in its numbers.

        Usage: `model.add_decoder("audio", frames=4, channels=192, intermediate_size=288, num_blocks=3)`; raises
        ValueError where the name is no continuous modality, or for numbers that do not fit.
        """
        self._check_continuous(name)
        shape = {
            "frames": frames,
            "channels": channels,
            "intermediate_size": intermediate_size,
            "num_blocks": num_blocks,
        }
        spec = {**self.config.modalities[name], "decoder": shape}
        check_modality(name, spec)
        self.config.modalities = {**self.config.modalities, name: spec}
        like = self.shared_transformer.norm.weight
        self.decoders[name] = LocalDecoder(self.config.hidden_size, spec["width"], **shape).to(like.device, like.dtype)

    def add_condition_source(self, name: str, width: int) -> None:
        """Give the network a projection from features of `width` to condition tokens; nothing else changes.

        Usage: `model.add_condition_source("memory", width=384)`; raises ValueError if the name is taken.
        """
        if name in self.condition_projections:
            raise ValueError(f"the source {name!r} exists; the model has {sorted(self.condition_projections)}")
        check_source(name, width)
        self.config.condition_sources = {**self.config.condition_sources, name: width}
        like = self.shared_transformer.norm.weight
        projection = PreciseLinear(width, self.config.condition_size)
        self.condition_projections[name] = projection.to(like.device, like.dtype).apply(self._init_weights)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.token_embedding

    def set_input_embeddings(self, value: TokenEmbedding) -> None:
        """Replace the token embedding."""
        self.token_embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The unembedding, None where it is the token embedding itself."""
        return self.unembedding

    def trunk_share(self) -> float:
        """The shared transformer's share of all parameters, embeddings and heads counted against it."""
        return num_weights(self.shared_transformer) / num_weights(self)

    def embed(self, segment: Segment) -> Float[Tensor, "batch length width"]:
        """A segment's tokens as the trunk reads them: content, modality and, on a canvas, time."""
        with present(self.modality_embedding):
            whose = self.modality_embedding[segment.modality]
        if segment.modality in self.projections:
            x = self.projections[segment.modality](segment.values.to(whose.dtype))
        else:
            x = self.token_embedding(segment.values)
        x = x + whose.to(x.dtype)
        if segment.time is None:
            return x
        times = self.time_embedding(segment.time, segment.target_time, segment.guidance)
        return x + (times if times.ndim == 3 else times[:, None]).to(x.dtype)

    def decode(self, hidden: Float[Tensor, "*shape width"], modality: str) -> Tensor:
        """The clean sample: logits for tokens (never the mask token: SUBS, arXiv:2406.07524), E[x_0] otherwise."""
        hidden = self.heads[modality](hidden)
        if modality in self.projections:  # by its name, since an adapter may wrap the head
            return hidden
        if self.unembedding is None:
            with present(self.token_embedding):
                logits = self.token_embedding.unembed(hidden)
        else:
            logits = self.unembedding(hidden)
        if self.config.mask_token_id is not None:
            mask_token = torch.tensor([self.config.mask_token_id], device=logits.device)
            fill = logits.index_fill if logits.requires_grad else logits.index_fill_  # no copy where none is needed
            logits = fill(-1, mask_token, float("-inf"))
        return logits

    def estimate(self, hidden: Float[Tensor, "batch length width"], segment: Segment, decoded: bool = True) -> Tensor:
        """What `decode` reads off a segment's features, on a canvas corrected by its skip and its decoder, if any.

        The decoder is left out where `decoded` is False: that is what it reads.
        """
        name = segment.modality
        clean = self.decode(hidden, name)
        if segment.time is None:
            return clean
        if name in self.skips:
            clean = self.skips[name](clean, segment.values, segment.time)
        if decoded and name in self.decoders:
            clean = self.decoders[name](hidden, clean, segment.values, segment.time, segment.mask)
        return clean

    def features(
        self,
        segments: Sequence[Segment],
        condition: Condition | None = None,
        cache: ContextCache | None = None,
        use_cache: bool = False,
        controls: Sequence[Control] = (),
    ) -> tuple[tuple[Float[Tensor, "batch length width"], ...], ContextCache]:
        """What the heads read, one tensor per segment, and the cache; context joins the caches when `use_cache`."""
        cache = ContextCache() if cache is None else cache
        if not isinstance(cache, ContextCache):
            raise ValueError(f"cache must be a ContextCache, got {type(cache).__name__}")
        check_segments(segments, self.config, condition, cache)
        order = sorted(range(len(segments)), key=lambda i: not segments[i].is_context)  # stable: context first
        ordered = [segments[i] for i in order]
        positions, roles, num_context, end = layout(segments, order, cache)
        x = torch.cat([self.embed(segment) for segment in ordered], dim=1)
        plan = plan_attention(roles, num_context, x.shape[1], cache).additive(attention_dtype(x))
        if condition is not None:
            condition = replace(condition, tokens=condition.tokens.to(x.dtype))
        control = None
        if controls:
            check_controls(controls, self.config, x.shape[0])
            control = ControlPass(controls, ordered, positions, roles, num_context, len(cache), use_cache)
        hidden = self.shared_transformer(x, positions, plan, cache, use_cache, condition, control)
        if use_cache and num_context:
            cache.remember(roles, num_context, end)
        parts = hidden.split([segment.values.shape[1] for segment in ordered], dim=1)
        return tuple(parts[order.index(i)] for i in range(len(segments))), cache

    def lower_features(
        self, context: Segment, depth: int
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch length 3"], TokenRoles | None]:
        """Hidden states of clean tokens before layer `depth`, with their positions and roles; nothing is cached."""
        nothing = ContextCache()
        check_segments([context], self.config, None, nothing)
        positions, roles, num_context, _ = layout([context], [0], nothing)
        x = self.embed(context)
        plan = plan_attention(roles, num_context, x.shape[1], nothing).additive(attention_dtype(x))
        return self.shared_transformer.lower(x, positions, plan, depth), positions, roles

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        timestep: Float[Tensor, "batch"] | None = None,
        attention_mask: Bool[Tensor, "batch length"] | None = None,
        position_ids: Tensor | None = None,
        modality: str = "text",
        segments: Sequence[Segment] | None = None,
        condition: Condition | None = None,
        cache: ContextCache | None = None,
        use_cache: bool = False,
        controls: Sequence[Control] = (),
        labels: Int[Tensor, "batch length"] | None = None,
        loss_weight: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> UnifiedDiffusionOutput | tuple:
        """Predict the clean sample.

        Args:
            input_ids: int64 (B, n), one segment of tokens; or give `segments`.
            timestep: None for clean context (causal, next-token logits), else t in [0, 1] of a canvas, float (B,).
            attention_mask: (B, n), 0 or False at padding.
            position_ids: (B, n) or (B, n, 3); by default tokens are counted on from the cache, padding left out.
            modality: the modality of `input_ids`.
            segments: several segments, in the order of their default positions.
            condition: condition tokens for cross-attention, (B, c, condition_size).
            cache, use_cache: a `ContextCache`; only clean context ever enters it.
            controls: ControlNets with their hints; context joins their caches too when `use_cache`.
            labels: int64 (B, n) for `input_ids`, -100 and padding ignored. Context: the usual shifted loss. Canvas:
                the NELBO in nats per token; give -100 at visible tokens. The others are weighted by `loss_weight`,
                (B,) or (B, n), 1 / t by default.

        Raises:
            ValueError: for shapes, dtypes, modalities or times that break a rule; the message names it.
        """
        if input_ids is not None and segments is None:
            mask = None if attention_mask is None else attention_mask.bool()
            if mask is not None and mask.shape == input_ids.shape and bool(mask.all()):
                mask = None
            if labels is not None:
                check_labels(input_ids, labels, loss_weight)
            segments = [Segment(modality, input_ids, time=timestep, positions=position_ids, mask=mask)]
        elif segments is None or input_ids is not None:
            raise ValueError("give either input_ids or segments, and not both")
        elif any(given is not None for given in (timestep, attention_mask, position_ids, labels, loss_weight)):
            raise ValueError(
                "timestep, attention_mask, position_ids, labels and loss_weight belong to input_ids; "
                "segments carry their own, and their losses are in hf_unified_diffusion.training"
            )
        asked_for_cache = use_cache or cache is not None
        hidden, cache = self.features(segments, condition, cache, use_cache, controls)
        output = UnifiedDiffusionOutput(cache=cache if asked_for_cache else None)
        output.hidden_states = hidden
        predictions = tuple(self.estimate(h, s) for h, s in zip(hidden, segments, strict=True))
        tokens = [p for p, s in zip(predictions, segments, strict=True) if s.modality not in self.projections]
        output.predictions = predictions
        output.logits = tokens[-1] if tokens else None
        if labels is not None:
            output.loss = token_loss(predictions[0], labels, timestep, loss_weight, attention_mask)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()
