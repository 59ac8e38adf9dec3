"""Serving: an OpenAI-compatible ASGI application over the engine, under uvicorn alone or under Ray Serve.

    hf-unified-diffusion serve --port 8000                # one process
    serve run hf_unified_diffusion.serve:app replicas=2   # Ray Serve, on one machine or a cluster
    serve run examples/serve.yaml                         # the same, with its settings in a file

`create_app(engine)` is the application; `app` builds the Ray Serve one. It needs
`pip install "hf_unified_diffusion[serve]"`, Ray Serve `[ray]`.
"""

from typing import TYPE_CHECKING, Any

from .application import create_app as create_app
from .settings import ServeSettings as ServeSettings

if TYPE_CHECKING:
    from ray.serve import Application


def app(settings: ServeSettings) -> "Application":
    """The Ray Serve application: the ASGI application of `create_app` in as many replicas as the settings say.

    Usage: `serve.run(app(ServeSettings(replicas=2)))`
    """
    from .ray_serve import deployed  # Ray takes seconds, and one process does without

    return deployed(settings)


__all__: list[Any] = ["ServeSettings", "app", "create_app"]
