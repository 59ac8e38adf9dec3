"""A Space for one checkpoint: write, infill, draw, speak, act, call tools and remember, with what it can do.

    python app.py                    # the embedded checkpoint
    python app.py FOLDER --port 8000 # a folder of a checkpoint; on the Hub the variable CHECKPOINT names it

One model is loaded once. Visitors queue; each sees drafts while the network denoises, and may stop at any step.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from studio import Studio
from tabs import infill_tab, memory_tab, tools_tab, write_tab
from tabs_media import draw_tab, joint_tab, speak_tab
from texts import CSS, INTRODUCTION

from hf_unified_diffusion import ArrowEngine

MAX_VISITORS = 32  # that may wait at once
TABS = {
    "Write": write_tab,
    "Infill": infill_tab,
    "Draw": draw_tab,
    "Speak and clone": speak_tab,
    "Together": joint_tab,
    "Tools by schema": tools_tab,
    "Memory": memory_tab,
}


def build(studio: Studio) -> gr.Blocks:
    """The page; what a visitor had is stopped and forgotten when the page is left.

    Usage: `build(Studio(engine)).launch(theme=THEME, css=CSS)`
    """
    with gr.Blocks(title="Unified diffusion", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        for name, tab in TABS.items():
            with gr.Tab(name):
                tab(studio)

        def leave(request: gr.Request) -> None:
            studio.leave(request.session_hash)

        page.unload(leave)
    return page.queue(max_size=MAX_VISITORS, default_concurrency_limit=MAX_VISITORS)


def look() -> dict[str, Any]:
    """Colours, fonts and sizes, as `launch` takes them; fonts are the reader's own."""
    theme = gr.themes.Soft(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(block_title_background_fill="none", block_title_text_color="*neutral_600", block_title_padding="0")
    return {"theme": theme, "css": CSS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=os.environ.get("CHECKPOINT"), help="default: the embedded one")
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    parser.add_argument("--memory", type=Path, help="a folder for memories; default: one that is gone at the end")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        memory = folder if chosen.memory is None else chosen.memory
        engine = ArrowEngine.from_pretrained(chosen.checkpoint, memory=memory, device=chosen.device)
        page = build(Studio(engine))
        page.launch(server_name=chosen.host, server_port=chosen.port, show_error=True, **look())


if __name__ == "__main__":
    main()
