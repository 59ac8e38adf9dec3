"""The application as a deployment of Ray Serve: the scaling is theirs."""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from .application import create_app
from .settings import ServeSettings

SPARE_PLACES = 64  # for health, metrics and refusals, beside what waits and runs


class UnifiedDiffusionServer:
    """One replica: an engine of its own, and the application over it."""

    def __init__(self, settings: ServeSettings):
        self.settings, self.engine = settings, settings.engine()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Asked by Ray Serve, once a replica."""
        return create_app(self.engine, self.settings)


def deployed(settings: ServeSettings) -> Application:
    """The deployment with the settings' replicas; a full replica answers 429 itself, so Ray lets more through to it."""
    places = settings.max_waiting + settings.max_batch + SPARE_PLACES
    actor_options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
    options: dict[str, Any] = {
        "num_replicas": settings.replicas,
        "ray_actor_options": actor_options,
        "max_ongoing_requests": places,
    }
    return serve.deployment(**options)(serve.ingress()(UnifiedDiffusionServer)).bind(settings)
