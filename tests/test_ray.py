"""The two doors to Ray, on a cluster of this machine alone: a worker that is killed, and a server."""

import asyncio
import os
import signal
from contextlib import closing
from socket import socket

import httpx2
import pytest
import ray.data

from hf_unified_diffusion.ray_batch import PromptWriter, Results, written
from hf_unified_diffusion.serve import ServeSettings, app
from tests.tiny import save_tiny_checkpoint

OPTIONS = {"max_new_tokens": 4, "num_steps": 2}
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def test_every_prompt_once_though_a_worker_is_killed(cluster, checkpoint, tmp_path):
    rows = [{"id": number, "prompt": f"prompt {number}"} for number in range(24)]
    options = {"checkpoint": str(checkpoint), "options": OPTIONS}
    results = written(
        ray.data.from_items(rows, override_num_blocks=12), tmp_path / "ray", 2, rows_per_file=2, **options
    )
    told, killed = [], None
    for batch in results.iter_batches(batch_size=2):
        told += batch["id"].tolist()
        if killed is None:
            killed = int(batch["pid"][0])
            os.kill(killed, signal.SIGKILL)
    assert sorted(told) == list(range(24)) and sorted(Results(tmp_path / "ray").ids()) == list(range(24))
    writer = PromptWriter(tmp_path / "alone", **options)
    writer({"id": [row["id"] for row in rows], "prompt": [row["prompt"] for row in rows]})
    assert Results(tmp_path / "ray").table().equals(Results(tmp_path / "alone").table())
    writer.engine.close()


def test_ray_serve_answers_as_the_application_does(cluster, checkpoint):
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    from ray import serve  # warns, which is for Ray to mend

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = ServeSettings(checkpoint=str(checkpoint), model_name="tiny", num_cpus=0.5)
    serve.run(app(settings), name="unified", route_prefix="/")
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "seed": 0}

    async def ask():
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            whole = await client.post("/v1/completions", json=body)
            streamed = await client.post("/v1/completions", json={**body, "stream": True})
            wrong = await client.post("/v1/completions", json={**body, "best_of": 3})
            return whole, streamed, wrong

    whole, streamed, wrong = asyncio.run(ask())
    assert whole.json()["choices"][0]["text"] == settings.engine().diffuse("ab", max_new_tokens=4, seed=0)[2:]
    assert streamed.text.endswith("data: [DONE]\n\n") and wrong.status_code == 400
    serve.shutdown()
