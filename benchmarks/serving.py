"""The server under OpenAI's own client: each kind of request, too many at once, clients that leave, memory.

    python benchmarks/serving.py
    python benchmarks/serving.py --ray        # under Ray Serve

Starts `hf-unified-diffusion serve` on a loopback port, with the checkpoint for text and JSON. Pictures come from a tiny
checkpoint with an autoencoder where the checkpoint has none (`--pictures`), so they show the route, not a price.
"""

import asyncio
import base64
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
from jsonschema import Draft202012Validator
from measure import Row, argument_parser, report, start
from openai import APIStatusError, AsyncOpenAI, RateLimitError

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


async def medium(kind: str, address: str, process: psutil.Process, repeats: int) -> Row:
    """A picture, or speech, where the checkpoint makes such; else how it is refused."""
    async with client_of(address) as client:

        async def picture() -> bool:
            options = {"size": "64x64", "extra_body": {"num_steps": 2, "seed": 0}}
            answer = await client.images.generate(prompt="a red apple", **options)
            return base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")

        async def speech() -> bool:
            options = {"voice": "default", "response_format": "wav", "model": "served"}
            return (await client.audio.speech.create(input="Good morning.", **options)).content.startswith(b"RIFF")

        try:
            return await timed(kind, {"picture": picture, "speech": speech}[kind], repeats, process)
        except APIStatusError as error:
            told = f"refused, {error.status_code}: {error.message}"
            return {"kind": kind, "right": told[:160], "seconds, median": "-", "core seconds, median": "-"}


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


def tiny_checkpoint_with_pictures(folder: Path) -> str:
    """A checkpoint of random weights that draws, for the route alone."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from hf_unified_diffusion.pipelines.checkpoints import save_image_parts
    from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
    from tests.codecs.vaes import tiny_dc
    from tests.tiny import tiny_model, tiny_tokenizer

    tiny_model(bos_token_id=0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_image_parts(folder, flow_scheduler(), tiny_dc(128))
    return str(folder)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--ray", action="store_true", help="under Ray Serve")
    parser.add_argument("--pictures", type=Path, help="a checkpoint that draws; default: a tiny one, made here")
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
    pictures = str(args.pictures) if args.pictures else tiny_checkpoint_with_pictures(args.work / "pictures")
    with served(args.checkpoint, "served", "--max-waiting", "32", *how) as (address, process):
        tables = asyncio.run(measured(address, process, args))
        speech = asyncio.run(medium("speech", address, process, args.repeats))
    with served(pictures, "served", *how) as (address, process):
        picture = asyncio.run(medium("picture", address, process, args.repeats))
    tables["Each kind"] += [picture, speech]
    name = Path(args.checkpoint or EMBEDDED_CHECKPOINT).name
    notes = [
        f"Text, JSON and speech: {name}. The picture: {'a tiny random checkpoint' if not args.pictures else name}."
    ]
    report("serving_ray" if args.ray else "serving", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
