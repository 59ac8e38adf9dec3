"""An engine that has something else to do."""

from contextlib import contextmanager
from threading import Event

from hf_unified_diffusion import ArrowEngine


@contextmanager
def busy(engine: ArrowEngine):
    """The engine has something else to do for a while: what is asked of it waits."""
    over = Event()
    engine.queue.submit(lambda step: over.wait())
    try:
        yield
    finally:
        over.set()
