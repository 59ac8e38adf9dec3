"""Speech by flow matching: a text in any voice, or in that of a few seconds of somebody's speech."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..codecs.audio_codec import AudioCodec
from ..codecs.durations import Alignment, Durations, aligned, phoneme_places
from ..codecs.phonemes import PhonemeCodec
from ..codecs.sounds import Sound
from ..codecs.speech_checks import check_speech
from ..codecs.speech_layout import Reference, SpeechRow
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .candidates import best_of_each, candidate_generators
from .checkpoint_pipeline import CheckpointPipeline
from .checkpoints import load_parts, load_speech_parts
from .context_denoiser import evaluating
from .diffusion_core import AfterStep
from .pipeline_output import UnifiedDiffusionSpeechPipelineOutput
from .speech_inputs import Part, SpeechOptions, Voice, check_room, crossfaded, gather_voices, parts_of
from .speech_rounds import SpeechRound, plan_speech
from .step_hooks import Callback, image_step_hook, tensor_names
from .text_inputs import as_texts, row_generators

PAUSE_S, FADE_S = 0.15, 0.02  # between parts of a text


class UnifiedDiffusionSpeechPipeline(CheckpointPipeline):
    """Speaks with a `UnifiedDiffusionModel`.

    Args:
        transformer: the score network.
        scheduler: any of diffusers that takes the velocities of a flow.
        tokenizer: fast, of the network.
        vocoder: makes log-mels sound, see `AudioCodec`; None: Griffin-Lim.

    Usage:
        pipe = UnifiedDiffusionSpeechPipeline.from_pretrained(folder)
        output = pipe("Hello there.", seed=0)
        output.audios[0], output.sampling_rate_hz, output.alignments[0].words
        pipe("In my voice.", reference_audio="me.wav", reference_text="What I say in it.", seed=0).audios[0]
    """

    modality = "audio"
    defaults: ClassVar[dict[str, Any]] = {
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "speaker_guidance_scale": 3.0,
        "guidance_interval": (0.0, 1.0),
        "guidance_eta": 1.0,
        "seconds_per_class": None,
    }
    model_cpu_offload_seq = "transformer->vocoder"
    _optional_components = ["vocoder"]
    _callback_tensor_inputs = ["latents", "clean_latents"]

    def __init__(
        self,
        transformer: UnifiedDiffusionModel,
        scheduler: SchedulerMixin,
        tokenizer: PreTrainedTokenizerFast,
        vocoder: PreTrainedModel | None = None,
    ):
        super().__init__()
        if transformer.config.continuous_width(self.modality) != AudioCodec.width:
            raise ValueError(
                f"the transformer must have the continuous modality {self.modality!r} of width {AudioCodec.width}, "
                f"got {transformer.config.modalities.get(self.modality)}"
            )
        if transformer.config.bos_token_id is None:
            raise ValueError("the transformer must have a bos_token_id, with which every context begins, got None")
        self.register_modules(transformer=transformer, scheduler=scheduler, tokenizer=tokenizer, vocoder=vocoder)
        self.phonemes = PhonemeCodec(tokenizer)

    @classmethod
    def parts_of(cls, folder: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline from the folder of a model."""
        scheduler, vocoder = load_speech_parts(folder)
        transformer, _, tokenizer = load_parts(folder, **kwargs)
        return {"transformer": transformer, "scheduler": scheduler, "tokenizer": tokenizer, "vocoder": vocoder}

    @property
    def codec(self) -> AudioCodec:
        """Between sound and tokens."""
        return AudioCodec(self.vocoder)

    @property
    def durations(self) -> Durations:
        """How long phonemes take: as the checkpoint's metadata says, else of English read aloud."""
        seconds = self._chosen("seconds_per_class")
        return Durations() if seconds is None else Durations(seconds)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        reference_audio: Sound | Sequence[Sound] | None = None,
        reference_text: str | list[str] | None = None,
        reference_sampling_rate_hz: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        speaker_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_eta: float | None = None,
        speed: float = 1.0,
        num_audios_per_prompt: int = 1,
        num_candidates: int = 1,
        seed: int | None = None,
        generator: Generator | list[Generator] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: str = "np",
        return_dict: bool = True,
    ) -> UnifiedDiffusionSpeechPipelineOutput | tuple:
        """Speak.

        Args:
            prompt: English text; a list makes a batch, of which no row depends on another. A text that takes over 12 s
                is spoken in parts, between sentences where it can be; without a reference the first part's voice is
                kept by the others.
            reference_audio: 1 to 30 s of somebody's speech, one or as many as the prompts, see `sounds.read_sound`.
            reference_text: what is said in it, word by word, which tells how fast; one or as many as the references.
                None: the rate is that of the corpus.
            reference_sampling_rate_hz: of references that are samples; None: 24,000.
            num_inference_steps: of each part. None: what the checkpoint says, 8 by default.
            guidance_scale: of the text; 1 is none, above it closer to it. None: what the checkpoint says, 3 by default.
            speaker_guidance_scale: of the reference. Where both scales are 1 a step takes one pass, where they are the
                same or `guidance_scale` is 1 two, else three.
            guidance_interval: the lowest and the highest noise level in [0, 1] at which guidance acts; other steps take
                one pass (arXiv:2404.07724). None: what the checkpoint says, by default all levels.
            guidance_eta: how much is kept of what guidance adds along the estimate, in [0, 1] (arXiv:2410.02416): 0
                turns tokens without making them stronger, 1 is plain guidance. None: what the checkpoint says, else 1.
            speed: 2 speaks twice as fast as the reference, or without one as the corpus; 0.25 to 4.
            num_audios_per_prompt: sounds per prompt, one after the other.
            num_candidates: of each part so many are spoken, and the one is kept that the network itself finds likeliest
                given the text (by its denoising loss, with against without it).
            seed: at least 0; row i always draws the same noise from a seed.
            generator: gives the seed, or a list of one per row; without both torch's global generator gives the seed.
            callback_on_step_end: called as (pipe, step, timestep, tensors) and returns the tensors, `latents` possibly
                changed; steps are counted through all parts.
            callback_on_step_end_tensor_inputs: of "latents", the tokens at the next time, and "clean_latents", the
                estimate of the clean ones, float32 (B, tokens, width), shorter rows padded on the right.
            output_type: "np", "pt", or "latent" for tokens.
            return_dict: False for a tuple.

        Raises:
            ValueError: for an argument that breaks a rule; the message states the rule and the value.

        Usage: `pipe(["Good morning.", "It is 9:05."], speed=1.1, seed=0).audios`
        """
        options = SpeechOptions(
            num_inference_steps=self._chosen("num_inference_steps", num_inference_steps),
            guidance_scale=self._chosen("guidance_scale", guidance_scale),
            speaker_guidance_scale=self._chosen("speaker_guidance_scale", speaker_guidance_scale),
            guidance_interval=self._chosen("guidance_interval", guidance_interval),
            guidance_eta=self._chosen("guidance_eta", guidance_eta),
            speed=speed,
            num_audios_per_prompt=num_audios_per_prompt,
            num_candidates=num_candidates,
            output_type=output_type,
        )
        device, durations = self._execution_device, self.durations
        texts = as_texts("prompt", prompt)
        voices = gather_voices(
            reference_audio,
            reference_text,
            reference_sampling_rate_hz,
            len(texts),
            self.codec,
            durations,
        )
        parts = [
            parts_of(text, durations, speed * (1.0 if voice is None else voice.rate))
            for text, voice in zip(texts, voices, strict=True)
        ]
        check_room(parts, voices, self.transformer.config.max_position_embeddings)
        parts = [row for row in parts for _ in range(num_audios_per_prompt)]
        voices = [voice for voice in voices for _ in range(num_audios_per_prompt)]
        generators = row_generators(seed, generator, len(parts), device)
        names = tensor_names(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        run = plan_speech(self.scheduler, options.num_inference_steps, device)
        rounds = max(map(len, parts))
        self._interrupt = False
        with evaluating(self.transformer), self.progress_bar(total=rounds * len(run.times)) as progress:
            hook = image_step_hook(self, callback_on_step_end, names, run.timesteps.repeat(rounds), progress)
            sounds, scores, passes = self._speak(parts, voices, options, generators, hook, device)
        output = self._output(parts, voices, sounds, options, durations)
        output.num_forward_passes, output.scores = passes, scores if num_candidates > 1 else None
        self.maybe_free_model_hooks()
        return output if return_dict else (output.audios,)

    def _speak(
        self,
        parts: list[list[Part]],
        voices: list[Voice | None],
        options: SpeechOptions,
        generators: list[Generator],
        after_step: AfterStep,
        device: torch.device,
    ) -> tuple[list[list[Float[Tensor, "tokens width"]]], list[float], int]:
        """The tokens of each row's parts, each row's mean score, and the passes it took."""
        drawn = [candidate_generators(generator, options.num_candidates) for generator in generators]
        references = [None if voice is None else voice.reference for voice in voices]
        sounds: list[list[Tensor]] = [[] for _ in parts]
        scores, passes = [0.0] * len(parts), 0
        for number in range(max(map(len, parts))):
            active = [row for row, its in enumerate(parts) if number < len(its)]
            asked = [self._row(parts[row][number], references[row]) for row in active for _ in drawn[row]]
            speaking = SpeechRound(
                self.transformer,
                asked,
                self.transformer.config.bos_token_id,
                options.guidance_scale,
                options.speaker_guidance_scale,
                device,
                options.guidance_interval,
                options.guidance_eta,
            )
            run = plan_speech(self.scheduler, options.num_inference_steps, device)
            said = speaking.speak(run, [each for row in active for each in drawn[row]], after_step)
            found = speaking.scores(said) if options.num_candidates > 1 else [0.0] * len(said)
            for row, best in zip(active, best_of_each(found, options.num_candidates), strict=True):
                sounds[row].append(said[best])
                scores[row] += found[best] / len(parts[row])
                if references[row] is None:
                    references[row] = Reference(asked[best].phoneme_ids, said[best], asked[best].places)
            passes += speaking.num_passes
            if self.interrupt:
                break
        return sounds, scores, passes

    def _row(self, part: Part, reference: Reference | None) -> SpeechRow:
        symbols, tokens = part.spoken.symbols, part.num_tokens
        return SpeechRow(self.phonemes.encode(symbols), tokens, phoneme_places(symbols, tokens), reference)

    def _output(
        self,
        parts: list[list[Part]],
        voices: list[Voice | None],
        sounds: list[list[Float[Tensor, "tokens width"]]],
        options: SpeechOptions,
        durations: Durations,
    ) -> UnifiedDiffusionSpeechPipelineOutput:
        """Sounds, times and checks of each row."""
        audios, alignments, checks = [], [], []
        rate = self.codec.sampling_rate_hz
        for row, voice, tokens in zip(parts, voices, sounds, strict=True):
            alignment, lengths = Alignment(), [len(part) / AudioCodec.tokens_per_second for part in tokens]
            if options.output_type == "latent":
                audios.append(torch.cat(tokens))
                starts = [sum(lengths[:number]) for number in range(len(lengths))]
            else:
                decoded = [self.codec.decode(part[None])[0] for part in tokens]
                waveform, places = crossfaded(decoded, round(PAUSE_S * rate), round(FADE_S * rate))
                starts = [place / rate for place in places]
            for part, length, start in zip(row, lengths, starts, strict=False):  # fewer where it was interrupted
                ends = durations.ends(part.spoken.symbols, length)
                alignment = alignment.joined(aligned(part.spoken, ends).moved(start))
            alignments.append(alignment)
            if options.output_type != "latent":
                reference = None if voice is None else voice.reference.sound
                checks.append(check_speech(waveform.cpu(), alignment, torch.cat(tokens).cpu(), reference))
                audios.append(waveform.cpu().numpy() if options.output_type == "np" else waveform)
        return UnifiedDiffusionSpeechPipelineOutput(
            audios=audios, sampling_rate_hz=rate, alignments=alignments, checks=checks or None
        )
