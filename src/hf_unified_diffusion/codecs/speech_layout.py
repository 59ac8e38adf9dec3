"""What the network sees of speech: clean phonemes and a clean reference, and where the sound to be made is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..contracts import Segment
from .clock import audio_positions, phoneme_positions
from .text_codec import pad_right


@dataclass(frozen=True)
class Reference:
    """How a voice sounds: an utterance, and what it says.

    Attributes:
        phoneme_ids: of what it says.
        sound: its tokens.
        places: of the phonemes on the clock of the sound (`durations.phoneme_places`).
    """

    phoneme_ids: Sequence[int]
    sound: Float[Tensor, "tokens width"]
    places: Sequence[float]


@dataclass(frozen=True)
class SpeechRow:
    """An utterance to be spoken.

    Attributes:
        phoneme_ids: what is to be said; empty where nothing is told (for guidance).
        num_tokens: of sound, 20 a second.
        places: of the phonemes on the clock of the utterance.
        reference: the voice, or None for any.
    """

    phoneme_ids: Sequence[int]
    num_tokens: int
    places: Sequence[float] = ()
    reference: Reference | None = None

    @property
    def start(self) -> int:
        """Where the utterance begins on the clock: after the first token and the reference."""
        return 1 + (0 if self.reference is None else len(self.reference.sound))

    @property
    def num_context(self) -> int:
        """Tokens of the context."""
        given = 0 if self.reference is None else len(self.reference.phoneme_ids) + len(self.reference.sound)
        return 1 + given + len(self.phoneme_ids)


@dataclass(frozen=True)
class SpeechLayout:
    """Rows as one batch.

    Attributes:
        contexts: clean segments: the first token and the reference's phonemes, the reference's sound, and the phonemes
            to be said; those that no row has are left out.
        positions: of the canvas.
        mask: which tokens of the canvas are real; None where all are.
    """

    contexts: list[Segment]
    positions: Float[Tensor, "batch tokens 3"]
    mask: Bool[Tensor, "batch tokens"] | None


def lay_out(rows: Sequence[SpeechRow], bos_token_id: int, device: str | torch.device = "cpu") -> SpeechLayout:
    """The segments of a batch of utterances; what a row has not is padding, and no row depends on another.

    Usage: `layout = lay_out([SpeechRow(ids, 40, phoneme_places(symbols, 40))], tokenizer.bos_token_id)`
    """
    references = [row.reference for row in rows]
    first = [[bos_token_id, *(() if each is None else each.phoneme_ids)] for each in references]
    places = [
        torch.cat([torch.zeros(1, 3), phoneme_positions(() if each is None else each.places, start=1)])
        for each in references
    ]
    contexts = [text_segment(first, places, bos_token_id, device)]
    if any(each is not None for each in references):
        contexts.append(sound_segment([None if each is None else each.sound for each in references], device))
    if any(row.phoneme_ids for row in rows):
        places = [phoneme_positions(row.places, row.start) for row in rows]
        contexts.append(text_segment([list(row.phoneme_ids) for row in rows], places, bos_token_id, device))
    places = [audio_positions(row.num_tokens, row.start) for row in rows]
    return SpeechLayout(contexts, stacked_rows(places, device), real_tokens(places, device))


def text_segment(
    ids: Sequence[Sequence[int]], places: Sequence[Tensor], pad_token_id: int, device: str | torch.device
) -> Segment:
    """Clean tokens at given places."""
    values, mask = pad_right(ids, pad_token_id, device)
    return Segment("text", values, positions=stacked_rows(places, device), mask=mask)


def sound_segment(sounds: Sequence[Tensor | None], device: str | torch.device) -> Segment:
    """Clean sounds, from the beginning of the clock on; None has no tokens."""
    width = next(sound.shape[1] for sound in sounds if sound is not None)
    given = [torch.zeros(0, width) if sound is None else sound.float() for sound in sounds]
    places = [audio_positions(len(sound), start=1) for sound in given]
    values = stacked_rows(given, device)
    return Segment("audio", values, positions=stacked_rows(places, device), mask=real_tokens(places, device))


def stacked_rows(rows: Sequence[Float[Tensor, "tokens width"]], device: str | torch.device) -> Tensor:
    """Rows of any lengths as one tensor, zeros behind the shorter ones."""
    longest = max(len(row) for row in rows)
    return torch.stack([F.pad(row.to(device), (0, 0, 0, longest - len(row))) for row in rows])


def real_tokens(rows: Sequence[Tensor], device: str | torch.device) -> Bool[Tensor, "batch tokens"] | None:
    """Which tokens of `stacked_rows` are no padding; None where all are."""
    counts = torch.tensor([len(row) for row in rows], device=device)
    if bool((counts == counts.max()).all()):
        return None
    return torch.arange(int(counts.max()), device=device) < counts[:, None]
