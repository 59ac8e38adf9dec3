"""What the tabs share: settings, buttons, the line that says how far a request is, and errors as messages."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from studio import Studio

from hf_unified_diffusion import QueueFullError, RequestTimeoutError

TIMEOUT_S = 300.0  # of one request, waiting included


@contextmanager
def told() -> Iterator[None]:
    """What a visitor did wrong, or a full queue, as a message on the page."""
    try:
        yield
    except (ValueError, QueueFullError, RequestTimeoutError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def seed_of(value: float) -> int | None:
    """-1 draws a seed, which the status then says."""
    return None if value == -1 else int(value)


def notice(text: str) -> None:
    """What the checkpoint lacks or does badly, above the tab that needs it."""
    if text:
        gr.Markdown(text, elem_classes="notice")


def numbers(tab: str, **sliders: tuple[float, float, float, float, str]) -> list[gr.Component]:
    """Sliders (least, most, value, step, label), two in a row, and a seed."""
    made: list[gr.Component] = []
    with gr.Accordion("Settings", open=True):
        names = list(sliders)
        for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
            with gr.Row():
                for name in pair:
                    least, most, value, step, label = sliders[name]
                    made.append(gr.Slider(least, most, value, step=step, label=label, elem_id=f"{tab}-{name}"))
        label = "Seed (-1: another one each time)"
        made.append(gr.Number(0, label=label, precision=0, minimum=-1, elem_id=f"{tab}-seed"))
    return made


def buttons(studio: Studio, name: str, tab: str) -> gr.Button:
    """The button that starts, and beside it the one that stops; stopping does not queue."""

    def stop(request: gr.Request) -> None:
        studio.stop(request.session_hash)

    with gr.Row():
        start = gr.Button(name, variant="primary", elem_id=f"{tab}-start")
        gr.Button("Stop", variant="stop", elem_id=f"{tab}-stop").click(stop, queue=False)
    return start


def status(tab: str) -> gr.Markdown:
    """One line on how far a request is."""
    return gr.Markdown("", elem_id=f"{tab}-status", elem_classes="status")
