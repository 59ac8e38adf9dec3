"""Phoneme times of any spoken audio whose words are known, by PocketSphinx, which carries its English model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from jaxtyping import Float32
from pocketsphinx import Decoder

from hf_unified_diffusion.codecs.mel import SAMPLING_RATE_HZ
from hf_unified_diffusion.codecs.phonemes import pronounce

ALIGNER_HZ, FRAMES_PER_S = 16000, 100
# CMU's phonemes -> symbols of Kokoro
SYMBOLS_OF = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "W", "AY": "I", "EH": "ɛ", "ER": "ɜɹ", "EY": "A", "IH": "ɪ"},
    **{"IY": "i", "OW": "O", "OY": "Y", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f"},
    **{"G": "ɡ", "HH": "h", "JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ"},
    **{"S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
CMU_OF = {symbol: name for name, symbol in SYMBOLS_OF.items()} | {"ə": "AH", "ɐ": "AH", "ɜ": "ER", "ɚ": "ER", "ɾ": "T"}
CMU_OF |= {"ᵻ": "IH", "ᵊ": "AH", "ɒ": "AA", "T": "T", "a": "AE", "o": "OW", "e": "EH"}
PAUSE = "."


@dataclass(frozen=True)
class ForcedAlignment:
    """Symbols of Kokoro as a recogniser hears them, pauses as full stops, and where each ends, in seconds."""

    symbols: tuple[str, ...]
    ends_s: tuple[float, ...]


class ForcedAligner:
    """Aligns words to sound in two passes, words first and then their phonemes, to 10 ms.

    Usage: `ForcedAligner()(waveform, "Hello, world!")`
    """

    def __init__(self) -> None:
        self.decoder = Decoder(lm=None, loglevel="FATAL", samprate=ALIGNER_HZ)

    def __call__(self, waveform: Float32[np.ndarray, "samples"], text: str) -> ForcedAlignment | None:
        """The alignment of 24 kHz sound; None where the words cannot be found in it."""
        samples = soxr.resample(waveform, SAMPLING_RATE_HZ, ALIGNER_HZ)
        sound = (samples.clip(-1, 1) * 32767).astype("<i2").tobytes()
        self.decoder.set_align_text(" ".join(self.known_words(text)))
        try:
            self._pass(sound)
            self.decoder.set_alignment()
            self._pass(sound)
        except RuntimeError:  # its way to say that no path was found
            return None
        segments = [phone for word in self.decoder.get_alignment() for phone in word]
        return joined([(phone.name, (phone.start + phone.duration) / FRAMES_PER_S) for phone in segments])

    def known_words(self, text: str) -> list[str]:
        """The words of a text in small letters, those that the dictionary lacks added as we pronounce them."""
        spoken = pronounce(text)
        for word in spoken.words:
            name = word.text.lower()
            if self.decoder.lookup_word(name) is None:
                sounds = [CMU_OF[symbol] for symbol in spoken.symbols[word.start : word.end] if symbol in CMU_OF]
                self.decoder.add_word(name, " ".join(sounds), True)
        return [word.text.lower() for word in spoken.words]

    def _pass(self, sound: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(sound, full_utt=True)
        self.decoder.end_utt()


def joined(phones: Sequence[tuple[str, float]]) -> ForcedAlignment:
    """CMU's phonemes with their ends as symbols of Kokoro; one that is two symbols is halved."""
    symbols, ends, before = [], [], 0.0
    for name, end in phones:
        said = SYMBOLS_OF.get(name, PAUSE)
        for place, symbol in enumerate(said, start=1):
            symbols.append(symbol)
            ends.append(before + (end - before) * place / len(said))
        before = end
    return ForcedAlignment(tuple(symbols), tuple(ends))
