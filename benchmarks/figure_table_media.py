"""The part of the report's table that is about pictures, speech and faces (see `figure_table.py`)."""

from collections.abc import Mapping
from typing import Any

from figures import Figure, Source, interval, relative, share_of

WORDS_A_SENTENCE = 7
ALIGNED_MS = 10.0  # the step of the aligner
LEAST_DNSMOS = 2.53  # 0.5 under the teacher's own recordings of seen voices


def words(row: Mapping[str, Any], value: float) -> float:
    """Points of a word error rate, as if words were independent; half of them wrong is the least certain."""
    return 100 * share_of("words")({"words": WORDS_A_SENTENCE * row["rows"]}, min(value / 100, 0.5))


def reconstruction() -> list[Figure]:
    """Held-out pictures through the image codec; the control has as many numbers, as pixels of a smaller picture."""
    figures = []
    columns = (("PSNR dB", "higher"), ("SSIM", "higher"), ("feature distance", "lower"))
    for size in (128, 256, 512):
        for column, better in columns:
            source = Source("image_codec", "Reconstruction", better, interval(column), "4.3")
            floor = 26.0 if column == "PSNR dB" and size == 256 else None
            row, control = ({"pixels": size, "pictures": name} for name in ("codec", "control: smaller picture"))
            figures.append(source.figure(f"Codec at {size} pixels, {column}", row, column, floor, None, control))
    seams = Source("image_codec", "Reconstruction", "lower", interval("seams"), "4.3")
    figures.append(seams.figure("Codec at 512 pixels, seams", {"pixels": 512, "pictures": "codec"}, "seams", None, 1.0))
    return figures


def drawing() -> list[Figure]:
    """Pictures that the checkpoint draws."""
    far, match = "Distance from real pictures", "Caption match"
    distances = {
        "KID x 1000": Source("images", far, "lower", interval("KID x 1000"), "4"),
        "density": Source("images", far, "higher", relative(0.15), "4"),
        "coverage": Source("images", far, "higher", share_of("count"), "4"),
    }
    figures = []
    for concepts, floor in (("seen", 0.6), ("held out", 0.3)):
        drawn, real, shuffled, coarse = (
            {"concepts": concepts, "pictures": pictures}
            for pictures in (
                "drawn", "real (ceiling)", "drawn, control: captions shuffled", "control: real at 16 x 16 pixels"
            )
        )  # fmt: skip
        for k in (1, 5, 10):
            source, column = Source("images", match, "higher", interval(f"recall at {k}"), "4.2"), f"recall at {k}"
            figures.append(source.figure(f"Pictures, {concepts}, {column}", drawn, column, None, real, shuffled))
        share = Source("images", "Drawn over real", "higher", interval("recall at 10"), "4.2")
        name = f"Pictures, {concepts}, recall at 10 over the real ones'"
        figures.append(share.figure(name, {"concepts": concepts}, "recall at 10", floor, 1.0))
        judge = {"judge": "EfficientNet-lite0"}
        for column, source in distances.items():
            rows = (drawn | judge, column, None, real | judge, coarse | judge)
            figures.append(source.figure(f"Pictures, {concepts}, {column}", *rows))
    for attribute, floor in (("colour", 0.8), ("count", None), ("relation", None)):
        scenes = Source("images", "Attributes of composed scenes", "higher", interval("accuracy"), "4.2")
        drawn, real, shuffled = (
            {"attribute": attribute, "scenes": what}
            for what in ("drawn", "real (ceiling)", "drawn, control: captions shuffled")
        )
        figures.append(scenes.figure(f"Scenes, right {attribute}", drawn, "accuracy", floor, real, shuffled))
    return figures


def remembered() -> list[Figure]:
    """Pictures that remembered ones lead."""
    figures, row = [], {"memory": "strength 1.0"}
    truth = {"memory": "the caption's own picture (ceiling)"}
    for column, best in (("nearer than without", truth), ("nearer than with a wrong memory", None)):
        led = Source("memory_pictures", "Steering", "higher", interval(column), "6.3")
        figures.append(led.figure(f"Memory at strength 1, pictures {column}", row, column, 0.8, best, 0.5))
    return figures


def speaking() -> list[Figure]:
    """How much of a voice the audio codec keeps."""
    vocoder, yardstick = {"way": "vocoder"}, {"way": "Griffin-Lim (yardstick)"}
    lost = Source("vocoder", "Lost beside the original", "lower", lambda row, value: 0.05, "5.5")
    errors = Source("vocoder", "Lost beside the original", "lower", lambda row, value: 0.01, "5.5")
    kept = Source("vocoder", "Resynthesis", "higher", interval("similarity"), "5.5")
    fast = Source("vocoder", "Decoding 10 s", "higher", relative(0.2), "5.5")
    of_vocoder, original, shuffled = (
        {"voices": "all of the teacher", "way": way}
        for way in ("vocoder", "original (ceiling)", "control: vocoder, tokens in random order")
    )
    rate, name = "times faster than real time", "Resynthesis, similarity of the speaker"
    return [
        lost.figure("Resynthesis, DNSMOS lost", vocoder, "DNSMOS lost", 0.3, 0.0, yardstick),
        errors.figure("Resynthesis, WER gained", vocoder, "WER gained", 0.02, 0.0, yardstick),
        kept.figure(name, of_vocoder, "similarity", None, original, shuffled),
        fast.figure("Vocoder, times faster than real time", vocoder, rate, 10.0, None, yardstick),
    ]


def spoken() -> list[Figure]:
    """Sentences that the checkpoint speaks in a given voice, how fast, and with what face."""
    table, figures = "Held-out sentences", []
    for voices, line, most, least in (
        ("seen", "5.2", 15.0, None),
        ("cloned", "5.3", 20.0, 0.65),
        ("recorded", "5.3", 20.0, 0.65),
    ):
        ours, recording = ({"what": f"{voices} voices: {what}"} for what in ("ours", "recording"))
        others_text, others_voice = (
            {"what": f"{voices} voices: ours, control: other {what}"} for what in ("text", "voice")
        )
        wrong = Source("speech", table, "lower", words, line)
        alike, clean = (Source("speech", table, "higher", interval(name), line) for name in ("similarity", "DNSMOS"))
        figures += [
            wrong.figure(f"Speech, {voices} voices, words wrong, %", ours, "WER %", most, recording, others_text),
            alike.figure(f"Speech, {voices} voices, similarity", ours, "similarity", least, recording, others_voice),
            clean.figure(
                f"Speech, {voices} voices, DNSMOS",
                ours,
                "DNSMOS",
                LEAST_DNSMOS if voices == "seen" else None,
                recording,
            ),
        ]
    fast = Source("speech_latency", "About 5 s", "lower", relative(0.15), "5.4")
    kokoro = {"speaker": "Kokoro-82M, float32, onnxruntime"}
    onset = Source("avatar", "Face and sound", "lower", lambda row, value: ALIGNED_MS, "5.6")
    heard, late = ({"reference": "forced alignment", "track": track} for track in ("as it is", "100 ms late"))
    column = "onset error ms, median"
    return [
        *figures,
        fast.figure("Speech, seconds for a second of it", {"speaker": "ours"}, "real-time factor", 0.4, kokoro),
        onset.figure("Faces, onset of visemes, ms", heard, column, 60.0, None, late),
    ]


MEDIA: tuple[Figure, ...] = (*reconstruction(), *drawing(), *remembered(), *speaking(), *spoken())
