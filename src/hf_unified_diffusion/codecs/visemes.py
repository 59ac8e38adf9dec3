"""From phonemes to how the mouth looks: which viseme a phoneme is seen as, and the coefficients of each viseme.

The visemes are the fifteen of MPEG-4 (ISO/IEC 14496-2, annex C) under the short names that face animation uses.
Phonemes are the symbols of Kokoro and misaki.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from ..contracts import TimedLabel
from .avatar_codec import COEFFICIENTS

SILENCE = "sil"
CLOSED = "PP"
SHORTEST_SILENCE_S = 0.08  # a shorter pause, such as that between two words, does not rest the mouth
GLIDE_AT = 0.55  # share of a diphthong that its first vowel takes

# how far each coefficient is pulled at the middle of the viseme, in [0, 1]; sides alike, those left out are 0
POSES: dict[str, dict[str, float]] = {
    "sil": {},
    "PP": {"jawOpen": 0.1, "mouthClose": 0.1, "mouthPress": 0.4, "mouthRollLower": 0.3, "mouthRollUpper": 0.25},
    "FF": {"jawOpen": 0.12, "mouthRollLower": 0.45, "mouthUpperUp": 0.25, "mouthShrugLower": 0.2},
    "TH": {"jawOpen": 0.2, "tongueOut": 0.3, "mouthLowerDown": 0.2, "mouthUpperUp": 0.1},
    "DD": {"jawOpen": 0.17, "mouthStretch": 0.15, "mouthLowerDown": 0.22, "mouthUpperUp": 0.05},
    "kk": {"jawOpen": 0.24, "mouthStretch": 0.12, "mouthLowerDown": 0.12, "mouthUpperUp": 0.05},
    "CH": {"jawOpen": 0.13, "mouthFunnel": 0.55, "mouthPucker": 0.15, "mouthLowerDown": 0.15, "mouthUpperUp": 0.15},
    "SS": {"jawOpen": 0.06, "mouthStretch": 0.3, "mouthSmile": 0.15, "mouthLowerDown": 0.28, "mouthUpperUp": 0.14},
    "nn": {"jawOpen": 0.18, "mouthStretch": 0.08, "mouthLowerDown": 0.18, "mouthUpperUp": 0.04},
    "RR": {"jawOpen": 0.16, "mouthFunnel": 0.35, "mouthPucker": 0.3, "mouthLowerDown": 0.08},
    "aa": {"jawOpen": 0.65, "mouthLowerDown": 0.3, "mouthUpperUp": 0.2, "mouthStretch": 0.1},
    "E": {"jawOpen": 0.42, "mouthSmile": 0.2, "mouthStretch": 0.22, "mouthLowerDown": 0.28, "mouthUpperUp": 0.18},
    "ih": {"jawOpen": 0.26, "mouthSmile": 0.38, "mouthStretch": 0.32, "mouthDimple": 0.15, "mouthLowerDown": 0.2},
    "oh": {"jawOpen": 0.46, "mouthFunnel": 0.55, "mouthPucker": 0.25, "mouthLowerDown": 0.1},
    "ou": {"jawOpen": 0.2, "mouthFunnel": 0.35, "mouthPucker": 0.75},
}
VISEMES = tuple(POSES)

# symbols of each run of visemes; a diphthong is two
SYMBOLS: dict[tuple[str, ...], str] = {
    ("sil",): " ;:,.!?¡¿—–-…\"'«»“”‘’()ʔ",
    ("PP",): "pbm",
    ("FF",): "fvʋɱ",
    ("TH",): "θð",
    ("DD",): "tdɾTɖʈ",
    ("kk",): "kɡgŋxcɣq",
    ("CH",): "ʃʒʧʤɕʑ",
    ("SS",): "szʦʣ",
    ("nn",): "nlɫɬɲɳ",
    ("RR",): "ɹrɚɻʁ",
    ("aa",): "aɑæʌɐɒ",
    ("E",): "eɛəɜᵊɝ",
    ("ih",): "iɪᵻjɨy",
    ("oh",): "oɔ",
    ("ou",): "uʊwʉɯʍ",
    ("E", "ih"): "A",
    ("aa", "ih"): "I",
    ("aa", "ou"): "W",
    ("oh", "ih"): "Y",
    ("oh", "ou"): "O",
    ("E", "ou"): "Q",
}
VISEMES_OF = {symbol: run for run, symbols in SYMBOLS.items() for symbol in symbols}
WITH_NEXT = frozenset("ˈˌhɦ")  # stress, and the breath before a vowel: the mouth is already there
WITH_PREVIOUS = frozenset("ːʲʰˑ̃")


def poses() -> Float32[np.ndarray, "visemes 52"]:
    """The coefficients of each of `VISEMES`, in [0, 1].

    Usage: `poses()[VISEMES.index("aa"), COEFFICIENTS.index("jawOpen")]`
    """
    table = np.zeros((len(VISEMES), len(COEFFICIENTS)), dtype=np.float32)
    for row, pose in zip(table, POSES.values(), strict=True):
        for stem, value in pose.items():
            sides = [stem] if stem in COEFFICIENTS else [stem + "Left", stem + "Right"]
            row[[COEFFICIENTS.index(name) for name in sides]] = value
    return table


def check_phonemes(phonemes: Sequence[str], ends_s: Sequence[float]) -> None:
    """Raise ValueError unless every phoneme is known and has an end, and ends are finite and never fall."""
    if len(phonemes) != len(ends_s) or not len(phonemes):
        raise ValueError(f"every phoneme must have an end, got {len(phonemes)} phonemes and {len(ends_s)} ends")
    unknown = sorted({p for p in phonemes if p not in VISEMES_OF and p not in WITH_NEXT and p not in WITH_PREVIOUS})
    if unknown:
        raise ValueError(f"phonemes must be symbols of Kokoro (see visemes.SYMBOLS), got {unknown}")
    ends = np.asarray(ends_s, dtype=np.float64)
    if not np.isfinite(ends).all() or ends[0] < 0 or (np.diff(ends) < 0).any():
        raise ValueError(f"ends must be finite seconds that never fall, got {ends.tolist()}")


def timed_phonemes(phonemes: Sequence[str], ends_s: Sequence[float]) -> list[TimedLabel]:
    """Phonemes with their times, each beginning where the one before ends.

    Raises:
        ValueError: an unknown symbol, or ends that fall or are too few.

    Usage: `timed_phonemes(["h", "I"], [0.05, 0.3])`
    """
    check_phonemes(phonemes, ends_s)
    starts = [0.0, *map(float, ends_s[:-1])]
    return [TimedLabel(p, start, float(end)) for p, start, end in zip(phonemes, starts, ends_s, strict=True)]


def timed_visemes(phonemes: Sequence[str], ends_s: Sequence[float]) -> list[TimedLabel]:
    """What the mouth does when, in order and without gaps; neighbours that look the same are one.

    A symbol without a look of its own goes with its neighbour, a pause below `SHORTEST_SILENCE_S` with what precedes
    it, and a diphthong is two visemes. A last symbol that would go with the next one is silence.

    Raises:
        ValueError: as `timed_phonemes`.

    Usage: `timed_visemes(["m", "ˈ", "I"], [0.1, 0.12, 0.4])  # PP, aa, ih`
    """
    found: list[TimedLabel] = []

    def add(label: str, start: float, end: float) -> None:
        if found and found[-1].label == label:
            start = found.pop().start_s
        found.append(TimedLabel(label, start, end))

    waiting = None  # where a run of symbols that go with the next one began
    for phoneme in timed_phonemes(phonemes, ends_s):
        start, end = phoneme.start_s if waiting is None else waiting, phoneme.end_s
        waiting = None
        if phoneme.label in WITH_NEXT:
            waiting = start
            continue
        run = VISEMES_OF.get(phoneme.label, (SILENCE,))
        short_pause = run == (SILENCE,) and end - start < SHORTEST_SILENCE_S
        if found and (phoneme.label in WITH_PREVIOUS or short_pause):
            add(found[-1].label, start, end)
        elif len(run) == 2:
            middle = start + GLIDE_AT * (end - start)
            add(run[0], start, middle)
            add(run[1], middle, end)
        else:
            add(run[0], start, end)
    if waiting is not None:
        add(SILENCE, waiting, float(ends_s[-1]))
    return found
