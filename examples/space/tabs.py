"""The tabs of text: writing, infilling, calling tools, remembering."""

import gradio as gr
from parts import TIMEOUT_S, buttons, notice, numbers, seed_of, status, told
from studio import GAP, Studio
from texts import ALONE, CHECKED, EMPTY, EXAMPLES, SCHEMA, TOOLS


def write_tab(studio: Studio) -> None:
    """A text, its drafts shown as they are denoised."""
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(EXAMPLES[0][0], label="What comes before", lines=3, elem_id="write-prompt")
            with gr.Row():
                modality = gr.Radio(["text", "code"], value="text", label="Kind", elem_id="write-kind")
                way = gr.Radio([CHECKED, ALONE], value=CHECKED, label="How", elem_id="write-way")
            start = buttons(studio, "Write", "write")
            length, temperature, steps, block, seed = numbers(
                "write",
                length=(4, 256, 48, 4, "Tokens"),
                temperature=(0, 2, 0.8, 0.05, "Temperature"),
                steps=(1, 256, 32, 1, "Steps, if alone"),
                block=(4, 64, 8, 4, "Block"),
            )
        with gr.Column(scale=3):
            paper, line = gr.HTML(EMPTY, elem_id="write-paper"), status("write")
            gr.Examples(EXAMPLES, [prompt, modality], label="Beginnings")

    def write(prompt, modality, way, length, temperature, steps, block, seed, request: gr.Request):
        options = {"max_new_tokens": int(length), "block_length": int(block), "temperature": temperature}
        options |= {"seed": seed_of(seed), "num_steps": int(steps) if way == ALONE else None}
        with told():
            yield from studio.write(request.session_hash, prompt, modality, timeout_s=TIMEOUT_S, **options)

    given = [prompt, modality, way, length, temperature, steps, block, seed]
    start.click(write, given, [paper, line], show_progress="minimal", show_progress_on=paper, api_name="write")


def infill_tab(studio: Studio) -> None:
    """A gap between two given sides."""
    with gr.Row():
        with gr.Column(scale=2):
            text = gr.Textbox(
                f"She opened the door and{GAP} so she went back inside.",
                label=f"A text with the gap {GAP}",
                lines=4,
                elem_id="infill-text",
            )
            modality = gr.Radio(["text", "code"], value="text", label="Kind")
            start = buttons(studio, "Fill", "infill")
            length, steps, seed = numbers("infill", length=(1, 64, 8, 1, "Tokens"), steps=(1, 64, 8, 1, "Steps"))
        with gr.Column(scale=3):
            paper, line = gr.HTML(EMPTY, elem_id="infill-paper"), status("infill")

    def infill(text, modality, length, steps, seed, request: gr.Request):
        options = {"max_new_tokens": int(length), "num_steps": int(steps), "seed": seed_of(seed)}
        with told():
            yield from studio.infill(request.session_hash, text, modality, timeout_s=TIMEOUT_S, **options)

    start.click(
        infill, [text, modality, length, steps, seed], [paper, line], show_progress="minimal", show_progress_on=paper
    )


def tools_tab(studio: Studio) -> None:
    """JSON that always keeps to a schema, or calls one of some tools."""
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("User: What is the weather in Oslo?\nCall:\n", label="Request", lines=3)
            definition = gr.Code(
                TOOLS, language="json", label="A list of tools, or a JSON schema", elem_id="tools-json"
            )
            with gr.Row():
                for name, example in (("A list of tools", TOOLS), ("A schema", SCHEMA)):
                    gr.Button(name, size="sm").click(lambda example=example: example, outputs=definition, queue=False)
            start = buttons(studio, "Call", "tools")
            length, steps, seed = numbers(
                "tools",
                length=(8, 256, 96, 8, "Tokens"),
                steps=(0, 64, 0, 1, "Steps (0: drafts)"),
            )
        with gr.Column():
            answer = gr.Code(language="json", label="Answer", interactive=False, elem_id="tools-answer")
            line = status("tools")

    def call(prompt, definition, length, steps, seed, request: gr.Request):
        options = {"max_new_tokens": int(length), "num_steps": int(steps) or None, "seed": seed_of(seed)}
        with told():
            yield from studio.call(request.session_hash, prompt, definition, timeout_s=TIMEOUT_S, **options)

    start.click(
        call,
        [prompt, definition, length, steps, seed],
        [answer, line],
        show_progress="minimal",
        show_progress_on=answer,
    )


def memory_tab(studio: Studio) -> None:
    """A visitor's own things: kept until the page is left, found by meaning, really forgotten."""
    guided = studio.can_be_guided()
    if not guided:
        notice("Here memories are kept, found and forgotten; this checkpoint has not learned to write by them.")
    with gr.Row():
        with gr.Column():
            texts = gr.Textbox(
                "Anna drinks green tea.\nThe bicycle is red.\nTom plays chess on Sundays.",
                label="To remember, one a line",
                lines=3,
                elem_id="memory-texts",
            )
            keep = gr.Button("Remember", variant="primary", elem_id="memory-start")
            query = gr.Textbox("What does she drink?", label="To look for (empty: all)", elem_id="memory-query")
            find = gr.Button("Search", elem_id="memory-search")
            with gr.Row(elem_classes="ends"):
                number = gr.Textbox("", label="Number to forget (empty: all)", scale=2, elem_id="memory-number")
                drop = gr.Button("Forget", variant="stop", elem_id="memory-forget")
        with gr.Column():
            table = gr.Dataframe(
                headers=["number", "memory", "score"], interactive=False, wrap=True, elem_id="memory-table"
            )
            line = status("memory")

    def remember(texts, request: gr.Request):
        with told():
            return studio.remember(request.session_hash, texts), studio.memories(request.session_hash)

    def search(query, request: gr.Request):
        with told():
            return studio.memories(request.session_hash, query)

    def forget(number, request: gr.Request):
        with told():
            return studio.forget(request.session_hash, number), studio.memories(request.session_hash)

    keep.click(remember, texts, [line, table], show_progress_on=table)
    find.click(search, query, table)
    drop.click(forget, number, [line, table], show_progress_on=table)
    if guided:
        guided_writing(studio)


def guided_writing(studio: Studio) -> None:
    """A text that the visitor's memories steer."""
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox("In the morning Anna", label="Write with these memories", elem_id="guided-prompt")
            start = buttons(studio, "Write", "guided")
            strength, length, seed = numbers(
                "guided",
                strength=(0, 10, 1, 0.5, "How much they steer (0: not at all)"),
                length=(4, 128, 32, 4, "Tokens"),
            )
        with gr.Column(scale=3):
            paper, line = gr.HTML(EMPTY, elem_id="guided-paper"), status("guided")

    def write(prompt, strength, length, seed, request: gr.Request):
        visitor = request.session_hash
        options = {"memory_guided": True, "memory_strength": strength, "namespace": visitor, "seed": seed_of(seed)}
        with told():
            yield from studio.write(visitor, prompt, max_new_tokens=int(length), timeout_s=TIMEOUT_S, **options)

    start.click(write, [prompt, strength, length, seed], [paper, line], show_progress="minimal", show_progress_on=paper)
