"""What the tabs of the Space do, without a browser: live, stopped, refused, apart for each visitor."""

import base64
import io
import json
import re
from html import unescape
from threading import Event

import numpy as np
import pytest
from PIL import Image

from tests.space.busy_engine import busy

WEATHER = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Lima"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_writing_shows_drafts_and_ends_with_what_the_engine_writes(studio):
    options = {"max_new_tokens": 8, "num_steps": 8, "block_length": 4, "seed": 3}
    shown = list(studio.write("anna", "a < b & c", **options))
    assert shown[0] == (None, "Waiting for a turn ...") and "8 passes, seed 3" in shown[-1][1]
    drafts = [html for html, _ in shown[1:-1]]
    assert any('class="hidden"' in html for html in drafts) and 'class="hidden"' not in shown[-1][0]
    assert "a &lt; b &amp; c" in shown[-1][0]  # what visitors type is text, never a page
    assert text_of(shown[-1][0]) == studio.engine.diffuse("a < b & c", **options)


def test_a_gap_is_filled_and_its_sides_stay(studio):
    *_, (html, status) = studio.infill("anna", "ab____yz", max_new_tokens=3, num_steps=3, seed=0)
    assert text_of(html).startswith("ab") and text_of(html).endswith("yz") and "Done" in status
    assert text_of(html) == studio.engine.diffuse("ab", suffix="yz", max_new_tokens=3, num_steps=3, seed=0)
    for text, count in (("no gap", 0), ("____ and ____", 2)):
        with pytest.raises(ValueError, match=f"must hold the gap ____ once, got it {count} times"):
            list(studio.infill("anna", text))


@pytest.mark.parametrize("seed", range(3))
def test_calls_keep_to_tools_and_schemas(studio, seed):
    *_, (answer, status) = studio.call("anna", "Call: ", json.dumps(WEATHER), max_new_tokens=64, seed=seed)
    assert json.loads(answer)["name"] == "get_weather" and json.loads(answer)["arguments"]["city"] in ("Oslo", "Lima")
    assert "it parses and validates" in status
    schema = {"type": "integer", "minimum": 1, "maximum": 5}
    *_, (answer, _) = studio.call("anna", "", json.dumps(schema), max_new_tokens=8, num_steps=2, seed=seed)
    assert 1 <= json.loads(answer) <= 5
    with pytest.raises(ValueError, match="must be JSON"):
        list(studio.call("anna", "", "{"))


def test_pictures_come_with_previews(studio):
    options = {"num_steps": 3, "guidance_scale": 2.0, "seed": 0}
    shown = list(studio.draw("anna", "a red apple", 64, 32, **options))
    pictures = [picture for picture, _ in shown[1:]]
    assert all(picture.shape == (64, 32, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert np.array_equal(
        pictures[-1], studio.engine.diffuse("a red apple", modality="image", height=64, width=32, **options)
    )
    assert studio.lacks("image") == ""


def test_speech_in_a_given_voice(studio, voice_file):
    options = {"num_steps": 2, "seed": 0}
    *_, ((rate, sound), status) = studio.speak("anna", "Two red fish.", **options)
    assert rate == 24_000 and np.array_equal(sound, studio.engine.diffuse("Two red fish.", "audio", **options))
    assert "s of sound" in status
    *_, ((_, cloned), _) = studio.speak("anna", "Two red fish.", str(voice_file), "One fish.", **options)
    assert not np.array_equal(cloned, sound)
    *_, ((_, by_ear), _) = studio.speak("anna", "Two red fish.", str(voice_file), **options)
    assert not np.array_equal(by_ear, sound)


@pytest.mark.parametrize("with_words", [False, True])
def test_sound_and_face_come_together(studio, with_words):
    options = {"num_steps": 2, "seed": 0}
    *_, (html, status) = studio.act("anna", "Two red fish.", with_words, **options)
    assert "2 passes" in status and 'src="data:audio/wav;base64,' in html and "data:image/png;base64," in html
    (data,) = re.findall(r"data:image/png;base64,([\w+/=]+)", html)
    (faces,) = re.findall(r"(\d+) faces", status)
    with Image.open(io.BytesIO(base64.b64decode(data))) as sheet:
        assert sheet.width * sheet.height >= int(faces) * 200 * 200
    assert ('class="written"' in html) == with_words


def test_who_stops_gets_no_more_and_frees_the_engine(studio):
    reached, go_on, shown = Event(), Event(), []

    def hold(pipe, step, t, tensors):
        if step == 2:
            reached.set()
            go_on.wait()
        return tensors

    options = {"max_new_tokens": 16, "num_steps": 16, "block_length": 16, "seed": 0}
    for html, status in studio.write("anna", "ab", callback_on_step_end=hold, **options):
        shown.append((html, status))
        if reached.is_set() or status != "Waiting for a turn ...":
            reached.wait()
            studio.stop("anna")
            go_on.set()
    assert shown[-1][1] in ("Stopped after 3 steps.", "Stopped after 2 steps.") and studio.running == {}
    with busy(studio.engine):
        left = studio.write("tom", "ab", **options)
        next(left)
        left.close()  # the page is gone
    assert studio.running == {} and studio.engine.diffuse("ab", max_new_tokens=2, seed=0)


def test_a_second_request_of_a_visitor_ends_the_first_and_others_go_on(studio):
    options = {"max_new_tokens": 8, "num_steps": 8, "block_length": 8, "seed": 0}
    asked = [studio.write(who, prompt, **options) for who, prompt in (("anna", "ab"), ("tom", "ab"), ("anna", "cd"))]
    with busy(studio.engine):
        assert [next(each) for each in asked] == [(None, "Waiting for a turn ...")] * 3
    first, other, second = [list(each)[-1] for each in asked]
    assert first == (None, "Stopped after 0 steps.")
    assert text_of(other[0]) == studio.engine.diffuse("ab", **options)
    assert text_of(second[0]) == studio.engine.diffuse("cd", **options)


def test_memories_are_a_visitors_own_and_gone_when_the_page_is_left(studio, tmp_path):
    assert studio.remember("anna", "Anna drinks tea.\n\nTom plays chess. ") == "Remembered 2."
    studio.remember("tom", "The bicycle is red.")
    found = studio.memories("anna", "Tom plays chess.", k=1)
    assert found[0][1] == "Tom plays chess." and found[0][2] == pytest.approx(1, abs=1e-3)
    assert [text for _, text, _ in studio.memories("tom")] == ["The bicycle is red."]
    assert studio.forget("anna", f" {found[0][0]} ") == "Forgot 1. No file holds it any more."
    assert [text for _, text, _ in studio.memories("anna")] == ["Anna drinks tea."]
    with pytest.raises(ValueError, match="must be the number of a memory, got 'tea'"):
        studio.forget("anna", "tea")
    with pytest.raises(ValueError, match="must be a line"):
        studio.remember("anna", " \n")
    with pytest.raises(ValueError, match="may have 200 memories"):
        studio.remember("anna", "\n".join(map(str, range(200))))
    studio.leave("anna")
    assert studio.memories("anna") == [] and len(studio.memories("tom")) == 1


def test_what_a_checkpoint_lacks_is_said_and_refused():
    from studio import Studio

    from hf_unified_diffusion import ArrowEngine

    embedded = Studio(ArrowEngine.from_pretrained())
    facts = embedded.engine.model.checkpoint_facts
    assert embedded.lacks("image", "audio", "avatar") == "" and "image: " in embedded.caveats("image")
    assert embedded.caveats("text") == ""
    facts["supported_modalities"] = ["text", "code"]
    assert embedded.caveats("image") == embedded.lacks("image")
    assert "no trained pictures" in embedded.lacks("image") and "no trained voice" in embedded.lacks("text", "audio")
    assert not embedded.can_be_guided()
    with pytest.raises(ValueError, match="must be one that the checkpoint was trained for"):
        list(embedded.draw("anna", "a red apple", 64, 64))
    with pytest.raises(ValueError, match="must be one that the checkpoint was trained for"):
        list(embedded.act("anna", "Good morning.", False))
    with pytest.raises(ValueError, match="started without a memory"):
        embedded.remember("anna", "tea")
