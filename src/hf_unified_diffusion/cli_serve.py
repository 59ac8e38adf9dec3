"""`hf-unified-diffusion serve`: the OpenAI-compatible server on this machine."""

import argparse
from typing import Any

MORE_THAN_ONE = ("replicas", "num_cpus", "num_gpus")


def add_serve(commands: Any) -> None:
    """The arguments of `serve`."""
    subparser = commands.add_parser("serve", help=serve.__doc__, description=serve.__doc__)
    subparser.set_defaults(command=serve)
    subparser.add_argument("--checkpoint", help="a folder; default: the embedded one")
    subparser.add_argument("--device", help="such as cuda; default: the CPU")
    subparser.add_argument("--dtype", help="such as bfloat16; default: as saved")
    subparser.add_argument("--model-name", help="what clients call it; default: the name of the folder")
    subparser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    subparser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    subparser.add_argument("--max-waiting", type=int, help="requests that may wait; one more gets 429 (default: 32)")
    subparser.add_argument("--max-batch", type=int, help="requests that may run together (default: 8)")
    subparser.add_argument("--timeout-s", type=float, help="what a request may take (default: 300)")
    subparser.add_argument("--ray", action="store_true", help="under Ray Serve, with the options that follow")
    subparser.add_argument("--replicas", type=int, help="processes, each with an engine (default: 1)")
    subparser.add_argument("--num-cpus", type=float, help="that each reserves (default: 1)")
    subparser.add_argument("--num-gpus", type=float, help="that each reserves (default: 0)")


def serve(chosen: argparse.Namespace) -> None:
    """Answer OpenAI's clients: text, code, JSON by schema, pictures and speech, until it is interrupted."""
    from .serve import app, create_app  # web frameworks, which other commands do without
    from .serve.settings import ServeSettings

    given = {name: getattr(chosen, name, None) for name in ServeSettings.model_fields}
    settings = ServeSettings(**{name: value for name, value in given.items() if value is not None})
    if chosen.ray:
        from ray import serve as ray_serve

        ray_serve.start(http_options={"host": chosen.host, "port": chosen.port})
        ray_serve.run(app(settings), blocking=True)
        return
    needless = [name for name in MORE_THAN_ONE if getattr(chosen, name) is not None]
    if needless:
        raise ValueError(f"{', '.join(needless)} must be left out without --ray")
    import uvicorn

    uvicorn.run(create_app(settings.engine(), settings), host=chosen.host, port=chosen.port, log_level="warning")
