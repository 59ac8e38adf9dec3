"""The tabs of pictures, sound and faces."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
from parts import TIMEOUT_S, buttons, notice, numbers, seed_of, status, told
from PIL import Image
from studio import Studio
from texts import EMPTY


def as_file(picture: Any, folder: Path) -> Path | None:
    """A picture, uint8 (height, width, 3), as a file in a folder; the next one takes its place.

    Gradio writes an array to a file named by its contents, even while the browser reads that very file because the
    last preview was the same picture: it then breaks off and shows nothing. A file it copies only where it is new.
    """
    if picture is None:
        return None
    Image.fromarray(np.asarray(picture)).save(folder / "picture.png")
    return folder / "picture.png"


def draw_tab(studio: Studio) -> None:
    """A picture after a caption, with the network's guess after each step."""
    notice(studio.caveats("image"))
    side = studio.picture_side()
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox("a red apple", label="Caption", elem_id="draw-prompt")
            avoided = gr.Textbox("", label="What to avoid (with guidance)")
            start = buttons(studio, "Draw", "draw")
            height, width, steps, scale, strength, seed = numbers(
                "draw",
                height=(side, 512, max(side, 256), side, "Height, pixels"),
                width=(side, 512, max(side, 256), side, "Width, pixels"),
                steps=(1, 64, 16, 1, "Steps"),
                guidance=(1, 10, 3, 0.5, "Guidance"),
                strength=(0.05, 1, 0.6, 0.05, "Share of the picture below to draw anew"),
            )
            start_from = gr.Image(label="A picture to start from (optional)", type="pil", height=160)
        with gr.Column(scale=3):
            picture, line = gr.Image(label="Picture", interactive=False, elem_id="draw-picture"), status("draw")

    def draw(prompt, avoided, start_from, height, width, steps, scale, strength, seed, request: gr.Request):
        options: dict[str, Any] = {"num_steps": int(steps), "guidance_scale": scale, "seed": seed_of(seed)}
        if avoided and scale != 1:
            options["negative_prompt"] = avoided
        if start_from is not None:
            options |= {"image": start_from, "strength": strength}
        asked = (request.session_hash, prompt, int(height), int(width))
        with told(), TemporaryDirectory() as folder:
            for shown, progress in studio.draw(*asked, timeout_s=TIMEOUT_S, **options):
                yield as_file(shown, Path(folder)), progress

    given = [prompt, avoided, start_from, height, width, steps, scale, strength, seed]
    start.click(draw, given, [picture, line], show_progress="minimal", show_progress_on=picture)


def speak_tab(studio: Studio) -> None:
    """A text in any voice, or in that of a few seconds of somebody's speech."""
    notice(studio.caveats("audio"))
    with gr.Row():
        with gr.Column(scale=2):
            text = gr.Textbox("Good morning. It is five past nine.", label="Text", lines=2, elem_id="speak-text")
            start = buttons(studio, "Speak", "speak")
            steps, scale, speed, seed = numbers(
                "speak",
                steps=(1, 64, 8, 1, "Steps"),
                guidance=(1, 6, 2, 0.25, "Guidance by text"),
                speed=(0.25, 4, 1, 0.05, "Speed"),
            )
            with gr.Accordion(
                "A voice to clone: 1 to 30 s of yours, or of who allows it", open=False, elem_id="speak-voice"
            ):
                reference = gr.Audio(
                    label="Speech",
                    sources=["upload", "microphone"],
                    type="filepath",
                    format="wav",
                    elem_id="speak-reference",
                )
                said = gr.Textbox("", label="What is said in it, word by word", elem_id="speak-said")
        with gr.Column(scale=3):
            sound, line = gr.Audio(label="Sound", interactive=False, elem_id="speak-sound"), status("speak")

    def speak(text, reference, said, steps, scale, speed, seed, request: gr.Request):
        options = {"num_steps": int(steps), "guidance_scale": scale, "speed": speed, "seed": seed_of(seed)}
        with told():
            yield from studio.speak(request.session_hash, text, reference, said, timeout_s=TIMEOUT_S, **options)

    start.click(
        speak,
        [text, reference, said, steps, scale, speed, seed],
        [sound, line],
        show_progress="minimal",
        show_progress_on=sound,
    )


def joint_tab(studio: Studio) -> None:
    """Words, sound and face of one moment, made together."""
    notice(studio.caveats("audio", "avatar"))
    with gr.Row():
        with gr.Column(scale=2):
            text = gr.Textbox("Good morning.", label="Text", lines=2, elem_id="joint-text")
            with_words = gr.Checkbox(False, label="Go on from the text, and write the words too", elem_id="joint-words")
            start = buttons(studio, "Act", "joint")
            steps, scale, seed = numbers("joint", steps=(1, 64, 16, 1, "Steps"), guidance=(1, 6, 2, 0.25, "Guidance"))
        with gr.Column(scale=3):
            face, line = gr.HTML(EMPTY, elem_id="joint-face"), status("joint")

    def act(text, with_words, steps, scale, seed, request: gr.Request):
        options = {"num_steps": int(steps), "guidance_scale": scale, "seed": seed_of(seed)}
        with told():
            yield from studio.act(request.session_hash, text, with_words, timeout_s=TIMEOUT_S, **options)

    start.click(
        act, [text, with_words, steps, scale, seed], [face, line], show_progress="minimal", show_progress_on=face
    )
