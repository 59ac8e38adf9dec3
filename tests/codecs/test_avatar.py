"""A face in time: what is written is read back, what is said is seen, and what cannot be is refused."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_unified_diffusion.codecs.avatar_codec import COEFFICIENTS, AvatarCodec, resampled
from hf_unified_diffusion.codecs.avatar_track import AvatarTrack
from hf_unified_diffusion.codecs.avatar_view import draw_face, draw_strip, write_gif
from hf_unified_diffusion.codecs.phonemes import SYMBOLS, pronounce
from hf_unified_diffusion.codecs.viseme_alignment import aligned_visemes, cheapest_path, seen_ends
from hf_unified_diffusion.codecs.visemes import VISEMES, WITH_NEXT, poses, timed_phonemes, timed_visemes
from hf_unified_diffusion.contracts import TimedLabel

JAW, BLINK = COEFFICIENTS.index("jawOpen"), COEFFICIENTS.index("eyeBlinkLeft")


def some_track(frames=40, seed=0):
    return np.random.default_rng(seed).random((frames, 52)).astype(np.float32)


def test_names_are_those_of_arkit_in_apples_order():
    assert len(COEFFICIENTS) == len(set(COEFFICIENTS)) == AvatarCodec.width == 52
    assert COEFFICIENTS[:2] == ("eyeBlinkLeft", "eyeLookDownLeft") and COEFFICIENTS[-1] == "tongueOut"
    assert COEFFICIENTS[14:20] == ("jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel")
    paired = [name.removesuffix("Left") for name in COEFFICIENTS if name.endswith("Left") and name[-5:] != "hLeft"]
    assert all(stem + "Right" in COEFFICIENTS for stem in paired)


def test_tokens_are_coefficients_and_back():
    codec, coefficients = AvatarCodec(), torch.from_numpy(some_track())[None]
    tokens = codec.encode(coefficients)
    torch.testing.assert_close(codec.decode(tokens), coefficients)
    wild = codec.decode(1000 * torch.randn(1, 5, 52, generator=torch.Generator().manual_seed(0)))
    assert wild.min() == 0 and wild.max() == 1


@pytest.mark.parametrize("bad", [torch.zeros(4, 52), torch.zeros(1, 4, 51), torch.zeros(1, 4, 52).long()])
def test_other_shapes_are_refused(bad):
    for method in (AvatarCodec().encode, AvatarCodec().decode):
        with pytest.raises(ValueError, match=r"must be float \(batch, tokens, 52\)"):
            method(bad)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_coefficients_outside_are_refused(value):
    with pytest.raises(ValueError, match="coefficients must be in"):
        AvatarCodec().encode(torch.full((1, 2, 52), value))
    with pytest.raises(ValueError, match="coefficients must be in"):
        AvatarTrack(np.full((2, 52), value, dtype=np.float32))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.sampled_from([12.5, 24, 25, 30, 60]))
def test_other_frame_rates_are_as_long_and_stay_between(frames, rate):
    track = some_track(frames)
    moved = resampled(track, 20, rate)
    assert abs(len(moved) / rate - frames / 20) <= max(0.5 / rate, 1 / rate - frames / 20) + 1e-9
    assert (moved >= track.min(axis=0) - 1e-6).all() and (moved <= track.max(axis=0) + 1e-6).all()


def test_interpolation_is_exact_on_straight_lines_and_forth_and_back():
    line = np.repeat(np.linspace(0, 1, 40, dtype=np.float32)[:, None], 52, axis=1)
    finer = resampled(line, 20, 60)
    assert np.allclose(np.diff(finer[2:-2, 0]), 1 / 39 / 3, atol=1e-6)
    assert np.allclose(resampled(finer, 60, 20), line, atol=1e-6)  # three times finer: middles coincide
    with pytest.raises(ValueError, match="to_hz must be a positive number, got 0"):
        resampled(line, 20, 0)


@pytest.mark.parametrize("rate", [20, 30, 60])
@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_written_track_is_read_back(tmp_path, ending, rate):
    labels = (TimedLabel("m", 0.0, 0.1), TimedLabel("ɑ", 0.1, 2.0))
    track = AvatarTrack(some_track(), phonemes=labels).at(rate)
    again = AvatarTrack.read(track.write(tmp_path / f"mouth.{ending}"))
    assert np.abs(again.coefficients - track.coefficients).max() <= 0.5e-4 + 1e-7
    assert again.frame_rate_hz == rate and again.times_s == track.times_s
    assert again.phonemes == (labels if ending == "json" else ())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"mouth.{ending}"]
    second = AvatarTrack.read(again.write(tmp_path / f"again.{ending}"))
    assert np.array_equal(second.coefficients, again.coefficients)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = AvatarTrack(some_track()).write(tmp_path / "mouth.json")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"must end in one of \['.csv', '.json'\], got 'mouth.txt'"):
        AvatarTrack(some_track(seed=1)).write(tmp_path / "mouth.txt")

    def fails(source, destination):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        AvatarTrack(some_track(seed=1)).write(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_track_is_refused(tmp_path):
    path = AvatarTrack(some_track(4)).write(tmp_path / "mouth.json")
    whole = json.loads(path.read_text())
    rows = whole["coefficients"]
    changes = [
        {"format": "other"},
        {"names": whole["names"][::-1]},
        {"coefficients": [*rows[:2], rows[2][:-1]]},
        {"coefficients": [[2.0] * 52]},
        {"coefficients": []},
        {"frame_rate_hz": -1},
        {"words": [{"label": "a"}]},
    ]
    for change in changes:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match="must be a mouth track"):
            AvatarTrack.read(path)
    for text in ("", "[]", "{", path.read_text()[:40]):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be a mouth track"):
            AvatarTrack.read(path)
    table = AvatarTrack(some_track(4)).write(tmp_path / "mouth.csv")
    lines = table.read_text().splitlines()
    for changed in (lines[:1], lines[1:], [*lines[:-1], "9" + lines[-1]], [*lines, "1,2"]):
        table.write_text("\n".join(changed))
        with pytest.raises(ValueError, match="must be a mouth track"):
            AvatarTrack.read(table)


def test_every_phoneme_has_a_viseme_and_every_viseme_a_pose_of_its_own():
    for symbol in SYMBOLS:
        assert timed_visemes([symbol], [0.2])
    table = poses()
    assert table.shape == (15, 52) and table.min() == 0 and table.max() <= 1
    assert len(np.unique(table, axis=0)) == 15
    with pytest.raises(ValueError, match=r"phonemes must be symbols of Kokoro .* got \['λ'\]"):
        timed_visemes(["λ"], [1.0])
    with pytest.raises(ValueError, match="ends must be finite seconds that never fall"):
        timed_phonemes(["m", "ɑ"], [0.2, 0.1])
    with pytest.raises(ValueError, match="every phoneme must have an end, got 2 phonemes and 1 ends"):
        timed_phonemes(["m", "ɑ"], [0.2])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SYMBOLS), st.floats(0.01, 0.3)), min_size=1, max_size=20))
def test_visemes_fill_the_time_without_gaps(said):
    symbols, durations = zip(*said, strict=True)
    ends = np.cumsum(durations).tolist()
    visemes = timed_visemes(symbols, ends)
    assert visemes[0].start_s == 0 and visemes[-1].end_s == pytest.approx(ends[-1])
    for before, after in itertools.pairwise(visemes):
        assert before.end_s == after.start_s and before.label != after.label
    assert {viseme.label for viseme in visemes} <= set(VISEMES)


def test_stress_goes_with_its_vowel_and_short_pauses_do_not_rest():
    symbols = pronounce("Oh, my mum").symbols
    ends = [0.1 * (i + 1) for i in range(len(symbols))]
    labels = [viseme.label for viseme in timed_visemes(symbols, ends)]
    assert labels == ["oh", "ou", "sil", "PP", "aa", "ih", "sil", "PP", "aa", "PP"]
    assert "ˈ" in symbols and "ˈ" in WITH_NEXT
    short = timed_visemes(["m", " ", "ɑ"], [0.1, 0.15, 0.3])
    assert [(v.label, round(v.end_s, 2)) for v in short] == [("PP", 0.15), ("aa", 0.3)]


def test_the_cheapest_path_is_the_cheapest_of_all():
    distance = np.random.default_rng(0).random((7, 3))
    costs = {
        (i, j): distance[:i, 0].sum() + distance[i:j, 1].sum() + distance[j:, 2].sum()
        for i in range(1, 6)
        for j in range(i + 1, 7)
    }
    assert tuple(cheapest_path(distance)) == min(costs, key=costs.get)


def test_visemes_are_seen_where_they_are():
    labels, lengths = ["sil", "PP", "aa", "SS", "ou", "sil"], [4, 2, 5, 3, 4, 2]
    track = np.repeat(poses()[[VISEMES.index(label) for label in labels]], lengths, axis=0)
    seen = aligned_visemes(track, 20, labels)
    assert np.allclose([v.end_s for v in seen], np.cumsum(lengths) / 20, atol=0.03)
    symbols = [" ", "m", "ɑ", "s", "u", "."]
    uniform = (np.arange(1, 7) / 6).tolist()
    assert np.allclose(seen_ends(track, 20, symbols, uniform), np.cumsum(lengths) / 20, atol=0.03)
    with pytest.raises(ValueError, match="cannot show 6 visemes"):
        aligned_visemes(track[:1], 20, labels)
    with pytest.raises(ValueError, match=r"labels must be one or more of .* got \['zz'\]"):
        aligned_visemes(track, 20, ["zz"])


def changed_rows(first, second):
    """The rows in which the middle third of two pictures differs, as shares of the height."""
    third = first.width // 3
    differ = (np.asarray(first) != np.asarray(second))[:, third : 2 * third].any(axis=(1, 2))
    return np.flatnonzero(differ) / len(differ)


def test_a_jaw_opens_the_mouth_and_a_blink_closes_the_eyes():
    rest = np.zeros(52, dtype=np.float32)
    open_mouth, blink = rest.copy(), rest.copy()
    open_mouth[JAW], blink[[BLINK, BLINK + 7]] = 0.8, 1.0
    face = draw_face(rest, 120)
    assert face.size == (120, 120)
    assert changed_rows(face, draw_face(open_mouth, 120)).min() > 0.6
    eyes = changed_rows(face, draw_face(blink, 120))
    assert eyes.min() > 0.3 and eyes.max() < 0.55
    dark = [np.sum(np.all(np.asarray(draw_face(v, 120)) == (70, 20, 26), axis=2)) for v in (rest, open_mouth)]
    assert dark[1] > 4 * dark[0]


def test_strip_and_gif_show_the_whole_track(tmp_path):
    track = AvatarTrack(some_track(7))
    strip = draw_strip(track, count=3, size=40)
    assert strip.size == (120, 40)
    assert np.array_equal(np.asarray(strip)[:, 80:], np.asarray(draw_face(track.coefficients[-1], 40)))
    with Image.open(write_gif(track, tmp_path / "face.gif", size=40)) as moving:
        assert moving.n_frames == 7 and moving.info["duration"] == 50
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw_strip(track, count=0)
    with pytest.raises(ValueError, match="size must be at least 32"):
        draw_face(track.coefficients[0], 10)
