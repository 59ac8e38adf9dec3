"""Who says what: the rows of the speech corpus, planned before any is spoken."""

import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .speech_sentences import spoken_texts

HELD_OUT_VOICES = ("af_kore", "am_fenrir", "am_puck", "bf_isabella", "bm_fable")
SPLITS = ("train", "validation", "test")
SPEEDS = (0.85, 1.2)


@dataclass(frozen=True)
class Line:
    """A row to be spoken: the text, the teacher's voice or two with the share of the first, and its speed."""

    text: str
    voices: tuple[str, ...]
    share: float = 1.0
    speed: float = 1.0

    @property
    def voice(self) -> str:
        """The name of the voice: of a mix, both with the share of the first."""
        return self.voices[0] if len(self.voices) == 1 else f"{self.voices[0]}*{self.share:g}+{self.voices[1]}"


def plan_lines(
    split: str, shards: Path, voices: list[str], mixes: list[tuple[str, str, float]], count: int
) -> list[Line]:
    """The first `count` rows of a split.

    Train and validation are spoken by the seen voices; a quarter of train by mixes of two of them. Of test, the first
    and then every other row is spoken by a held-out voice, the rest by seen ones.

    Args:
        split: of the text corpus too, so that held-out rows have held-out sentences.
        shards: folder of the text corpus.
        voices: all of the teacher's.
        mixes: two seen voices and the share of the first.

    Usage: `plan_lines("train", Path("data/shards"), sorted(teacher.voices), mixes, 500)`
    """
    rng = random.Random(f"lines of {split}")
    seen = [voice for voice in voices if voice not in HELD_OUT_VOICES]
    lines: list[Line] = []
    for number, text in enumerate(islice(spoken_texts(shards, split), count)):
        speed = round(rng.uniform(*SPEEDS), 2)
        if split == "test":
            chosen = HELD_OUT_VOICES if number % 2 == 0 else seen
            lines.append(Line(text, (chosen[number // 2 % len(chosen)],)))
        elif split == "train" and mixes and rng.random() < 0.25:
            first, second, share = rng.choice(mixes)
            lines.append(Line(text, (first, second), share, speed))
        else:
            lines.append(Line(text, (rng.choice(seen),), 1.0, speed))
    return lines
