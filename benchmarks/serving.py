"""The server under OpenAI's own client: each kind of request, too many at once, clients that leave, memory.

    python benchmarks/serving.py
    python benchmarks/serving.py --ray        # under Ray Serve

Starts `hf-unified-diffusion serve` on a loopback port, with the checkpoint for text and JSON. Pictures and speech come
from a tiny checkpoint of random weights unless one is given (`--media`), so they show the routes, not a price.
"""

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from statistics import median
from time import perf_counter
from typing import Any

import httpx2
import psutil
import soundfile
import torch
from jsonschema import Draft202012Validator
from measure import Row, argument_parser, report, start
from openai import AsyncOpenAI, RateLimitError
from PIL import Image

from hf_unified_diffusion.codecs.audio_codec import AudioCodec
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT

HOST = "127.0.0.1"
COMMAND = "from hf_unified_diffusion.cli import main; main()"
READY_S, REQUEST_S = 420, 540
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 3, 7]}},
    "required": ["city", "days"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
QUESTION = [{"role": "user", "content": "Which city, and for how many days?"}]
METRIC = re.compile(r"^unified_diffusion_(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@contextmanager
def served(checkpoint: str | None, name: str, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own; gives its address and the process."""
    with closing(socket()) as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", COMMAND, "serve", "--port", str(port), "--model-name", name]
    command += [*([] if checkpoint is None else ["--checkpoint", checkpoint]), "--timeout-s", str(REQUEST_S), *more]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        address, end = f"http://{HOST}:{port}", perf_counter() + READY_S
        while not healthy(address):
            if process.poll() is not None or perf_counter() > end:
                raise RuntimeError(f"the server must be ready within {READY_S} s, got exit status {process.poll()}")
            time.sleep(0.5)
        yield address, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def healthy(address: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx2.get(f"{address}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def client_of(address: str) -> AsyncOpenAI:
    """OpenAI's client, which does not try again."""
    limits = httpx2.Limits(max_connections=None)
    http = httpx2.AsyncClient(limits=limits, timeout=REQUEST_S)
    return AsyncOpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0, http_client=http)


def resident_mb(process: psutil.Process) -> float:
    """Memory of a server and of what it started."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


async def metrics(address: str) -> dict[str, float]:
    """Of a server, by name; those with labels are summed."""
    async with httpx2.AsyncClient(timeout=60) as http:
        text = (await http.get(f"{address}/metrics")).text
    found: dict[str, float] = {}
    for name, value in METRIC.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


async def kinds(client: AsyncOpenAI, process: psutil.Process, args: Any) -> list[Row]:
    """One request of each kind of text, again and again: what comes, and how long it takes."""
    common = {"model": "served", "max_tokens": args.tokens, "seed": 0}

    async def text() -> bool:
        answer = await client.completions.create(prompt="The history of the bicycle", **common)
        return bool(answer.choices[0].text)

    async def schema() -> bool:
        answer = await client.chat.completions.create(messages=QUESTION, response_format=FORMAT, **common)
        return Draft202012Validator(SCHEMA).is_valid(json.loads(answer.choices[0].message.content))

    async def stream() -> bool:
        chunks = [c async for c in await client.completions.create(prompt="The history of", stream=True, **common)]
        return len(chunks) > 2

    asked = {"text": text, "text, streamed": stream, "JSON by schema": schema}
    return [await timed(name, ask, args.repeats, process) for name, ask in asked.items()]


async def timed(name: str, ask: Callable[[], Awaitable[bool]], repeats: int, process: psutil.Process) -> Row:
    """How often a request was right, its median seconds, and those that cores were busy; the first one warms up."""
    seconds, cores, right = [], [], 0
    for _ in range(repeats + 1):
        began, spent = perf_counter(), core_seconds(process)
        right += await ask()
        seconds.append(perf_counter() - began)
        cores.append(core_seconds(process) - spent)
    found = {"seconds, median": median(seconds[1:]), "core seconds, median": median(cores[1:])}
    return {"kind": name, "right": f"{right} of {repeats + 1}", **found}


def core_seconds(process: psutil.Process) -> float:
    """What a server and what it started have spent of cores."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


async def media(address: str, process: psutil.Process, repeats: int) -> list[Row]:
    """Pictures and speech: whether they decode, to the size and the sampling rate that they should have."""
    async with client_of(address) as client:

        async def picture() -> bool:
            options = {"size": "64x64", "extra_body": {"num_steps": 2, "seed": 0}}
            answer = await client.images.generate(prompt="a red apple", **options)
            return Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size == (64, 64)

        async def speech() -> bool:
            options = {"voice": "default", "response_format": "wav", "extra_body": {"num_steps": 2, "seed": 0}}
            answer = await client.audio.speech.create(input="Good morning.", model="served", **options)
            samples, rate_hz = soundfile.read(io.BytesIO(answer.content))
            return rate_hz == AudioCodec.sampling_rate_hz and len(samples) > rate_hz / 4 and samples.any()

        asked = {"picture of 64 x 64, PNG": picture, "speech, WAV of 24 kHz": speech}
        return [await timed(name, ask, repeats, process) for name, ask in asked.items()]


async def crowd(client: AsyncOpenAI, address: str, process: psutil.Process, args: Any) -> list[Row]:
    """Many requests at the same moment, several times: who is served, who is refused, and what stays in memory."""

    async def one(number: int) -> str:
        try:
            await client.completions.create(
                model="served", prompt=f"Story {number}:", max_tokens=args.crowd_tokens, seed=number
            )
        except RateLimitError as error:
            return "refused" if int(error.response.headers["retry-after"]) >= 1 else "refused without Retry-After"
        return "served"

    rows: list[Row] = []
    for turn in range(args.rounds):
        before, began, steps = resident_mb(process), perf_counter(), (await metrics(address))["steps_total"]
        asked = asyncio.gather(*(one(number) for number in range(args.requests)))
        outcomes = await asyncio.wait_for(asked, REQUEST_S)  # none hangs
        rows.append(
            {
                "round": turn + 1,
                "requests": args.requests,
                "served": outcomes.count("served"),
                "429 with Retry-After": outcomes.count("refused"),
                "other": len(outcomes) - outcomes.count("served") - outcomes.count("refused"),
                "seconds": perf_counter() - began,
                "steps": int((await metrics(address))["steps_total"] - steps),
                "RSS before, MB": before,
                "RSS after, MB": resident_mb(process),
            }
        )
    return rows


async def leaving(address: str, args: Any) -> list[Row]:
    """Clients that close a stream: how many steps the server still makes for them."""
    rows: list[Row] = []
    for turn in range(args.leavers):
        body = {"model": "served", "prompt": "Once", "max_tokens": 128, "num_steps": 128, "seed": turn, "stream": True}
        body["stream_options"] = {"include_drafts": True}
        drafts = 0
        async with (
            httpx2.AsyncClient(timeout=REQUEST_S) as http,
            http.stream("POST", f"{address}/v1/completions", json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                drafts += '"draft"' in line
                if drafts == 3:
                    break
            at_leaving = (await metrics(address))["steps_total"]
        while (found := await metrics(address))["unfinished_requests"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        rows.append(
            {
                "client": turn + 1,
                "steps seen by it": drafts,
                "steps asked for": 128,
                "steps after it left": int((await metrics(address))["steps_total"] - at_leaving),
                "places taken after": int(found["unfinished_requests"]),
            }
        )
    return rows


async def measured(address: str, process: psutil.Process, args: Any) -> dict[str, list[Row]]:
    """All that concerns text."""
    async with client_of(address) as client:
        return {
            "Each kind": await kinds(client, process, args),
            "A client that leaves": await leaving(address, args),
            "Too many at once": await crowd(client, address, process, args),
        }


def tiny_checkpoint(folder: Path) -> str:
    """A checkpoint of random weights that draws and speaks, for the routes alone."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from hf_unified_diffusion.pipelines.checkpoints import save_image_parts
    from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
    from tests.codecs.vaes import tiny_dc
    from tests.tiny import tiny_model, tiny_tokenizer

    model = tiny_model(bos_token_id=0, max_position_embeddings=512)
    for name in ("image", "audio"):  # heads start at zero: silence
        torch.nn.init.normal_(model.heads[name].weight, std=0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_image_parts(folder, flow_scheduler(), tiny_dc(128))
    return str(folder)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--ray", action="store_true", help="under Ray Serve")
    parser.add_argument("--media", type=Path, help="a checkpoint that draws and speaks; default: a tiny one, made here")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200, help="at the same moment")
    parser.add_argument("--crowd_tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--leavers", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where the tiny checkpoint goes")
    args, settings = start(parser)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    how = ["--ray"] if args.ray else []
    drawing = str(args.media) if args.media else tiny_checkpoint(args.work / "media")
    with served(args.checkpoint, "served", "--max-waiting", "32", *how) as (address, process):
        tables = asyncio.run(measured(address, process, args))
    with served(drawing, "served", *how) as (address, process):
        tables["Each kind"] += asyncio.run(media(address, process, args.repeats))
    name = Path(args.checkpoint or EMBEDDED_CHECKPOINT).name
    other = args.media.name if args.media else "a tiny checkpoint of random weights, so their seconds are no price"
    notes = [f"Text and JSON: {name}. The picture and the speech: {other}."]
    report("serving_ray" if args.ray else "serving", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
