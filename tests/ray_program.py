"""Started by test_ray.py in a process of its own: Ray leaves threads, warnings and settings behind.

python -m tests.ray_program CHECKPOINT FOLDER
"""

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from socket import socket

import httpx2
import ray.data
from ray import serve

from hf_unified_diffusion.ray_batch import PromptWriter, Results, written
from hf_unified_diffusion.serve import ServeSettings, app

OPTIONS = {"max_new_tokens": 4, "num_steps": 2}
COUNT = 24


def batch(checkpoint: str, folder: Path) -> None:
    """Every prompt once though a worker is killed, with the results of one process alone."""
    rows = [{"id": number, "prompt": f"prompt {number}"} for number in range(COUNT)]
    options = {"checkpoint": checkpoint, "options": OPTIONS}
    data = ray.data.from_items(rows, override_num_blocks=12)
    told, killed = [], None
    for part in written(data, folder / "ray", 2, rows_per_file=2, **options).iter_batches(batch_size=2):
        told += part["id"].tolist()
        if killed is None:
            killed = int(part["pid"][0])
            os.kill(killed, signal.SIGKILL)
    assert sorted(told) == list(range(COUNT)), told
    assert sorted(Results(folder / "ray").ids()) == list(range(COUNT))
    writer = PromptWriter(folder / "alone", **options)
    writer({name: [row[name] for row in rows] for name in ("id", "prompt")})
    assert Results(folder / "ray").table().equals(Results(folder / "alone").table())
    writer.engine.close()
    print(f"{COUNT} prompts once, process {killed} killed")


def served(checkpoint: str) -> None:
    """What the application answers under Ray Serve, as JSON."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = ServeSettings(checkpoint=checkpoint, model_name="tiny", num_cpus=0.5)
    serve.run(app(settings), name="unified", route_prefix="/")
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "seed": 0}
    address = f"http://127.0.0.1:{port}/v1/completions"
    whole, streamed, wrong = (
        httpx2.post(address, json=given, timeout=300)
        for given in (body, {**body, "stream": True}, {**body, "best_of": 3})
    )
    assert whole.json()["choices"][0]["text"] == settings.engine().diffuse("ab", max_new_tokens=4, seed=0)[2:]
    assert streamed.text.endswith("data: [DONE]\n\n"), streamed.text
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "best_of"
    serve.shutdown()
    print(json.dumps({"answered": 3}))


def started(attempts: int = 5) -> None:
    """A cluster of this machine; Ray waits 30 s for it, which is not enough for a busy one."""
    for left in reversed(range(attempts)):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


if __name__ == "__main__":
    given_checkpoint, given_folder = sys.argv[1:]
    started()
    batch(given_checkpoint, Path(given_folder))
    served(given_checkpoint)
    ray.shutdown()
