"""Text by masked diffusion: from nothing, from a prompt, between a prompt and a suffix, or into a canvas with holes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from ..codecs.text_codec import TextCodec, pad_right
from ..conditioning.energies_text import TextEnergy
from ..conditioning.guidance import without_tokens
from ..conditioning.rejection import Attempt
from ..conditioning.schema_constraint import SchemaConstraint
from ..contracts import Condition, Denoiser
from ..modeling.controlnet import UnifiedControlNetModel
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from .canvas_filling import CanvasFiller
from .checkpoint_pipeline import CheckpointPipeline
from .checkpoints import load_parts
from .constrained_rows import ConstrainedRows, constrain, vocabulary_of
from .context_denoiser import ContextDenoiser, evaluating
from .control_inputs import ControlInput, gather_controls, given_hints
from .energy_writing import EnergyWriter, Run, Shape, TextEnergies, Write
from .guided_context import GuidedContext
from .lora import LoraMixin, row_adapters
from .pipeline_hub import PushPipelineMixin
from .pipeline_output import UnifiedDiffusionTextPipelineOutput
from .step_hooks import Callback, step_hook, tensor_names
from .text_inputs import (
    TextOptions,
    TextRows,
    allowed_openings,
    check_canvas,
    check_room,
    gather_rows,
    given_constraint,
    given_context,
    matched_condition,
    row_generators,
    stop_strings,
)
from .text_rows import EndRule, RowWriter, stop_at
from .text_writing import CheckedWriting, place_between, remember_rows, write_blocks, write_canvas

# ControlNets, what is attended to besides, and each row's adapter
Steering = tuple[Sequence[ControlInput], Condition | None, list[str] | None]


class UnifiedDiffusionTextPipeline(LoraMixin, PushPipelineMixin, CheckpointPipeline):
    """Writes text with a `UnifiedDiffusionModel`.

    Args:
        transformer: the score network.
        scheduler: how masks are uncovered; its settings are the defaults of every call.
        tokenizer: fast, with the network's mask token.

    Usage:
        pipe = UnifiedDiffusionTextPipeline.from_pretrained()  # the embedded checkpoint
        pipe("The capital of France", max_new_tokens=32, num_inference_steps=8, seed=0).texts[0]
        pipe("The capital of", suffix=" is Paris.", max_new_tokens=4, num_inference_steps=4).texts[0]
        pipe("Rate it: ", json_schema={"type": "integer", "minimum": 1, "maximum": 5}).completions[0]
    """

    modality = "text"
    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ["sample", "logits"]

    def __init__(
        self,
        transformer: UnifiedDiffusionModel,
        scheduler: MaskedDiffusionScheduler,
        tokenizer: PreTrainedTokenizerFast,
    ):
        super().__init__()
        ids = {
            "transformer": transformer.config.mask_token_id,
            "scheduler": scheduler.config.mask_token_id,
            "tokenizer": tokenizer.mask_token_id,
        }
        if len(set(ids.values())) > 1 or None in ids.values():
            raise ValueError(f"transformer, scheduler and tokenizer must share one mask token, got the ids {ids}")
        if self.modality not in transformer.config.modalities:
            known = sorted(transformer.config.modalities)
            raise ValueError(f"the transformer must have the modality {self.modality!r}, got one with {known}")
        self.register_modules(transformer=transformer, scheduler=scheduler, tokenizer=tokenizer)

    @classmethod
    def parts_of(cls, folder: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline from the folder or repository of a model."""
        transformer, scheduler, tokenizer = load_parts(folder, **kwargs)
        return {"transformer": transformer, "scheduler": scheduler, "tokenizer": tokenizer}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        suffix: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        max_new_tokens: int = 128,
        block_length: int | None = 32,
        guidance_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        context: str | list[str] | None = None,
        context_scale: float = 1.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        ordering: str | None = None,
        entropy_bound: float | None = None,
        canvas: Int[Tensor, "batch length"] | None = None,
        condition: Condition | None = None,
        check_drafts: bool = False,
        constraint: SchemaConstraint | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        tools: Sequence[Mapping[str, Any] | Callable] | None = None,
        regex: str | None = None,
        controlnet: UnifiedControlNetModel | Sequence[UnifiedControlNetModel] | None = None,
        control_hint: Any = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        energies: Sequence[TextEnergy] = (),
        energy_scale: float = 1.0,
        energy_retries: int = 3,
        energy_growth: float = 2.0,
        num_candidates: int = 1,
        stop: str | list[str] | None = None,
        end_rules: Sequence[EndRule] = (),
        at_bound: EndRule | None = None,
        row_goes_on: Callable[[int], bool] | None = None,
        num_return_sequences: int = 1,
        adapter_names: Sequence[str | None] | None = None,
        seed: int | list[int] | None = None,
        generator: Generator | list[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
        streamer: BaseStreamer | None = None,
        output_type: str = "text",
        return_dict: bool = True,
    ) -> UnifiedDiffusionTextPipelineOutput | tuple:
        """Write.

        Args:
            prompt: what comes before; None starts from nothing. Whitespace at its end is written again by the first
                token, as one token with what follows. A list makes a batch; a row does not depend on its batch.
            suffix: what comes after, one or as many as the prompts. All between is then one canvas of exactly
                `max_new_tokens` tokens, whatever `block_length`; given strings stay as they are.
            num_inference_steps: denoising passes over the whole text, spread evenly over its blocks, at least one
                each; None: the scheduler's own number, 16 by default. Fewer are made where a block is done early.
            max_new_tokens: the bound on the length; text ends before it at the end token.
            block_length: tokens denoised together; finished blocks are context from the cache. None: the whole text
                at once.
            guidance_scale: 1 is none; above it, away from `negative_prompt` (or from no prompt), with twice the passes.
            negative_prompt: what to avoid, one or as many as the prompts; needs guidance.
            context: what is read before the prompt and is no part of the text, a memory say; one or as many as the
                prompts. It is no continuation: end it with a blank line where the prompt begins a text.
            context_scale: above 1 what the context changes is made stronger, below 1 weaker (arXiv:2305.14739), with
                twice the passes; at 0 it is not read.
            temperature, top_k, top_p, ordering, entropy_bound: instead of the scheduler's; see
                `MaskedDiffusionScheduler`.
            canvas: int64 (1 or B, n) token ids after the prompt; only its mask tokens are filled. Sets
                `max_new_tokens`.
            condition: what the network attends to besides, a memory say; 1 row or as many as the prompts. Guidance
                strengthens it too.
            check_drafts: let the causal path check every drafted block and keep what it would have written itself: text
                distributed as the autoregressive model's, at that temperature. Each draft takes the passes of one
                block and one to check it; drafts of one or two tokens in one step are made in the pass that checks
                those before. There are as many drafts as it needs.
            constraint: what each text must be, always: see `SchemaConstraint`. Whitespace at the end of a prompt then
                stays as it is. A canvas must be such a text as a whole; with a suffix, all between is one.
            json_schema, tools, regex: for `SchemaConstraint.from_json_schema`, `.from_tools`, `.from_regex`, instead.
            controlnet: one or several that were made for the transformer; what they add is summed. With guidance they
                act on the branch of the prompt, which is pushed away from the one without them.
            control_hint: what the ControlNet reads: a string, one a prompt, or a `Segment`; a list of these, one for
                each, where there are several. None: what the ControlNet's `hint_source` names, the prompt or the tools.
            controlnet_conditioning_scale: the weight of what it adds; one for all, or a list.
            control_guidance_start, control_guidance_end: when it acts, in shares of the canvas uncovered; or lists.
                With an end below 1 the context, and what `check_drafts` goes by, is left alone.
            energies: wishes such as `ForbiddenWords` and `RequiredWords`, each with its weight; rows are then written
                one by one (together where energies only choose), checked, and written again where they fail
                (`energy_history` of the output tells).
            energy_scale: what all weights are multiplied by; 0 is as without energies.
            energy_retries, energy_growth: how often a rejected text is written again, and by what the scale then grows.
            num_candidates: texts of each attempt, one of which is drawn by its energies.
            stop: strings that end the text; they are left out.
            end_rules: functions (prompt, completion) -> characters of the completion to keep, or None to go on; asked
                after each block.
            at_bound: such a function for a text that reached `max_new_tokens`, asked once; None keeps all. A streamer
                has seen the rest by then.
            row_goes_on: asked with the number of a row after each block; a row that it denies ends there.
            num_return_sequences: texts per prompt, one after the other.
            adapter_names: for each prompt the loaded LoRA adapter that it alone has, None for none; by default all have
                those of `set_adapters`.
            seed: at least 0; row i always draws the same numbers from a seed. A list has one a row.
            generator: gives the seed, or a list of one per row; without both torch's global generator gives the seed.
            callback_on_step_end: called as (pipe, step, t, tensors) and returns the tensors, `sample` possibly changed.
            callback_on_step_end_tensor_inputs: of "sample", int64 (b, n), the canvas of the b rows that go on, and
                "logits", float (b, n, vocab).
            streamer: gets prompt and finished blocks by `put`, drafts by `put_draft` if it has it; one row only.
            output_type: "text", or "seq" for token ids alone.
            return_dict: False for a tuple of what is not None.

        Raises:
            ValueError: for an argument that breaks a rule; the message states the rule and the value.

        Usage: `pipe(["One", "Two"], max_new_tokens=64, seed=0).completions`
        """
        device = self._execution_device
        config = self.transformer.config
        steps = self.scheduler.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_canvas(canvas, config.vocab_size, config.mask_token_id)
        context, context_scale = given_context(context, context_scale, controlnet)
        options = TextOptions(
            num_inference_steps=steps,
            max_new_tokens=max_new_tokens if canvas is None else canvas.shape[1],
            block_length=block_length,
            guidance_scale=guidance_scale,
            num_return_sequences=num_return_sequences,
            check_drafts=check_drafts,
            output_type=output_type,
            fixed_length=suffix is not None or canvas is not None,
            context_scale=context_scale,
        )
        if stop is not None:
            end_rules = (*end_rules, stop_at(stop_strings(stop)))
        if (end_rules or at_bound) and options.fixed_length:
            raise ValueError("stop, end_rules, at_bound must be left out with a suffix or canvas: its length is fixed")
        if negative_prompt is not None and guidance_scale == 1:
            raise ValueError("guidance_scale must not be 1 with a negative_prompt, got 1: it would do nothing")
        constraint = given_constraint(constraint, json_schema, tools, regex)
        if (end_rules or at_bound) and constraint is not None:
            raise ValueError("stop, end_rules, at_bound must be left out with a constraint: it says where a text ends")
        wishes = TextEnergies(energies, energy_scale, energy_retries, energy_growth, num_candidates)
        wishes.check(options, streamer is not None)
        if energies and row_goes_on is not None:
            raise ValueError("row_goes_on must be left out with energies: rows are then written in other batches")
        codec = TextCodec(self.tokenizer)
        heal = constraint is None
        rows = gather_rows(codec, prompt, suffix, negative_prompt, canvas, num_return_sequences, heal, context)
        condition = matched_condition(condition, len(rows), num_return_sequences)
        row_names = row_adapters(self.transformer, adapter_names, len(rows), num_return_sequences)
        check_room(rows, options.largest_context, config.max_position_embeddings)
        if streamer is not None and len(rows) > 1:
            raise ValueError(f"a streamer takes one row, got {len(rows)}")
        generators = row_generators(seed, generator, len(rows), device)
        changes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        scheduler = self._scheduler_with(**changes, ordering=ordering, entropy_bound=entropy_bound)
        constrained = self._constrained(constraint, codec, scheduler, rows, options)
        counts = len(rows), num_return_sequences, self._pad_token_id(), device
        ranges = controlnet_conditioning_scale, control_guidance_start, control_guidance_end
        hints = given_hints(controlnet, control_hint, prompt, tools)
        controls = gather_controls(controlnet, hints, *ranges, codec, *counts)
        steering = controls, condition, row_names
        if energies and len(rows) > 1 and (controls or condition is not None or row_names is not None):
            raise ValueError(
                "controlnet, condition and adapter_names must be left out with energies and several rows, "
                f"got {len(rows)} rows: rows are then written one by one"
            )
        names = tensor_names(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        history = None
        with evaluating(self.transformer), self.progress_bar(total=steps) as progress:
            on_step = step_hook(self, callback_on_step_end, names, streamer, progress)
            ends = [] if options.fixed_length else self._end_token_ids()

            def write(rows: TextRows, generators: Sequence[Generator], shape: Shape | None) -> Run:
                under = constrained
                if wishes.is_on:  # some of the rows, perhaps once more
                    under = self._constrained(constraint, codec, scheduler, rows, options)
                filler = CanvasFiller(scheduler, generators, ends, self._pad_token_id(), on_step, under)
                writer = RowWriter(codec, rows, options.max_new_tokens, end_rules, streamer, at_bound, row_goes_on)
                passes, acceptance_rate = self._write(rows, options, filler, writer, steering, device, shape)
                writer.close()
                return Run(writer, passes, acceptance_rate)

            if streamer is not None:
                streamer.put(torch.tensor(rows.prompt_ids[0], dtype=torch.int64))
            if wishes.is_on:
                alike = not controls and condition is None and row_names is None
                run, history = self._energy_writer(wishes, write, alike).run(rows, generators)
            else:
                run = write(rows, generators, None)
        if streamer is not None:
            if rows.suffix_ids[0]:
                streamer.put(torch.tensor(rows.suffix_ids[0], dtype=torch.int64))
            streamer.end()
        self.maybe_free_model_hooks()
        output = self._output(rows, run, options.output_type, history)
        return output if return_dict else output.to_tuple()

    def _constrained(
        self,
        constraint: SchemaConstraint | None,
        codec: TextCodec,
        scheduler: MaskedDiffusionScheduler,
        rows: TextRows,
        options: TextOptions,
    ) -> ConstrainedRows | None:
        """The rows at the start of their constraint; ValueError where no text of it fits."""
        if constraint is None:
            return None
        config = self.transformer.config
        vocabulary = vocabulary_of(codec, config.vocab_size, self._end_token_ids(), self._pad_token_id())
        length = options.max_new_tokens
        constrained = constrain(constraint, vocabulary, scheduler, len(rows), length, options.fixed_length)
        if rows.canvas is not None:
            constrained.check_canvas(rows.canvas)
        return constrained

    def _energy_writer(self, wishes: TextEnergies, write: Write, in_batches: bool) -> EnergyWriter:
        return EnergyWriter(wishes, self.transformer, self.modality, tuple(self._end_token_ids()), write, in_batches)

    def _write(
        self,
        rows: TextRows,
        options: TextOptions,
        filler: CanvasFiller,
        writer: RowWriter,
        steering: Steering,
        device: torch.device,
        shape: Shape | None,
    ) -> tuple[int, float | None]:
        """Run the loop in the way the request asks for; gives the passes it took, and the acceptance of drafts."""
        pad, mask = self._pad_token_id(), self.transformer.config.mask_token_id
        controls, condition, adapter_names = steering
        kind = self.transformer, self.modality, mask
        alone = ContextDenoiser(*kind, condition=condition, adapter_names=adapter_names)
        for control in controls:
            alone = control.apply(alone)
        begun = {alone: rows.read_ids}  # what each context begins with
        context: ContextDenoiser | GuidedContext = alone
        if options.context_scale != 1:
            without = ContextDenoiser(*kind, condition=condition, adapter_names=adapter_names)
            begun[without] = rows.prompt_ids
            context = GuidedContext(context, without, options.context_scale)
        if options.guidance_scale != 1:
            null = ContextDenoiser(*kind, adapter_names=adapter_names)
            remember_rows(null, rows.negative_ids, pad, device)
            context = GuidedContext(context, null, options.guidance_scale)
        denoiser: Denoiser = context if shape is None else shape(context, writer)
        opening = allowed_openings(rows, writer.codec, self.transformer.config.vocab_size, device)
        acceptance_rate = None
        if options.fixed_length:
            canvas = rows.canvas
            if canvas is None:
                canvas = torch.full((len(rows), options.max_new_tokens), mask)
            for one, ids in begun.items():
                place_between(one, ids, rows.suffix_ids, canvas.shape[1], pad, device)
            denoiser = without_tokens(denoiser, self._end_token_ids())
            canvas = canvas.to(device, torch.int64)
            write_canvas(writer, filler, denoiser, canvas, options.num_inference_steps, opening)
        else:
            for one, ids in begun.items():
                remember_rows(one, ids, pad, device)
            plan = list(zip(options.block_sizes, options.block_steps, strict=True))
            if options.check_drafts:
                size, steps = plan[0][0], plan[-1][1]
                acceptance_rate = CheckedWriting(writer, filler, context, size, steps, device).run(opening)
            else:
                write_blocks(writer, filler, denoiser, context, plan, opening, device)
        return context.num_passes, acceptance_rate

    def _output(
        self, rows: TextRows, run: Run, output_type: str, history: list[tuple[Attempt, ...]] | None
    ) -> UnifiedDiffusionTextPipelineOutput:
        writer = run.writer
        parts = zip(rows.prompt_ids, writer.ids, rows.suffix_ids, strict=True)
        sequences = [[*prompt, *new, *suffix] for prompt, new, suffix in parts]
        texts = completions = None
        if output_type == "text":
            completions = [writer.completion(row) for row in range(len(rows))]
            texts = ["".join(part) for part in zip(rows.prompts, completions, rows.suffixes, strict=True)]
        return UnifiedDiffusionTextPipelineOutput(
            sequences=pad_right(sequences, self._pad_token_id())[0],
            texts=texts,
            completions=completions,
            completion_ids=[torch.tensor(ids, dtype=torch.int64) for ids in writer.ids],
            finished=writer.finished,
            num_forward_passes=run.num_passes,
            acceptance_rate=run.acceptance_rate,
            energy_history=history,
        )

    def _end_token_ids(self) -> list[int]:
        ids = self.transformer.config.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    def _pad_token_id(self) -> int:
        pad = self.transformer.config.pad_token_id
        return next(iter(self._end_token_ids()), 0) if pad is None else pad

    def _scheduler_with(self, **changes: Any) -> MaskedDiffusionScheduler:
        """A scheduler for this call alone: the pipeline's own stays as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self.scheduler).from_config(self.scheduler.config, **given)
