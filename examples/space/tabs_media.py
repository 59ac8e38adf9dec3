"""The tabs of pictures, sound and faces."""

from typing import Any

import gradio as gr
from parts import TIMEOUT_S, buttons, notice, numbers, seed_of, status, told
from studio import Studio


def draw_tab(studio: Studio) -> None:
    """A picture after a caption, with the network's guess after each step."""
    notice(studio.lacks("image"))
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
        with told():
            yield from studio.draw(
                request.session_hash, prompt, int(height), int(width), timeout_s=TIMEOUT_S, **options
            )

    given = [prompt, avoided, start_from, height, width, steps, scale, strength, seed]
    start.click(draw, given, [picture, line], show_progress="minimal")
