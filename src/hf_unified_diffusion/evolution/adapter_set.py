"""The named adapters of one model: loaded once, applied for a while, picked by hand or by the prompt."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from ..modeling.adapter_folders import check_adapter_side
from ..modeling.adapters import activate, inject
from .adapter_router import AdapterRouter, Encode

AUTO = "auto"


class AdapterSet:
    """LoRA adapters of a model, none of them active until one is chosen. Needs PEFT.

    Attributes:
        active: the adapter that applies where a request names none, or None.

    Args:
        side: "ar" or "diffusion"; adapters of the other side are refused.
        encode: for the router.

    Usage:
        adapters = AdapterSet("diffusion", model, engine.encode)
        adapters.load("adapters/poems", "poems", examples=["Roses are red"])
        with adapters.applied("poems"): ...
    """

    def __init__(self, side: str, model: PreTrainedModel, encode: Encode):
        self.side, self.model = side, model
        self.names: list[str] = []
        self.active: str | None = None
        self.router = AdapterRouter(encode)

    def load(self, folder: str | Path, name: str, examples: Sequence[str] = ()) -> None:
        """Load an adapter under a name; `examples` are texts by which the router knows it.

        Raises:
            ValueError: a name that is taken or reserved, files that are none of an adapter, or one of the other side.
            ImportError: PEFT is not installed.
        """
        if name in self.names or name == AUTO or not name:
            raise ValueError(f"an adapter's name must be new, not empty and not {AUTO!r}, got {name!r}")
        check_adapter_side(folder, self.side)
        inject(self.model, Path(folder), name)
        activate(self.model, {})
        self.names.append(name)
        if examples:
            self.router.add(name, examples)

    def check(self, name: str | None) -> None:
        """Raise ValueError unless the name is None, "auto" or that of a loaded adapter."""
        if name is not None and name != AUTO and name not in self.names:
            raise ValueError(f"adapter must be one of {[*self.names, AUTO]} or None, got {name!r}")

    def request(
        self, name: str | None, prompt: str | Sequence[str] | None
    ) -> Callable[[], AbstractContextManager[str | None]]:
        """Check a request's adapter now; gives what applies it when the request runs. None takes the active one."""
        self.check(name)
        text = prompt or "" if isinstance(prompt, str | None) else "\n".join(prompt)
        return partial(self.applied, self.active if name is None else name, text)

    @contextmanager
    def applied(self, name: str | None, prompt: str = "") -> Iterator[str | None]:
        """The model with an adapter, without one afterwards; "auto" asks the router. Gives the name that applies."""
        name = self.router.choose(prompt) if name == AUTO else name
        if name is None:
            yield None
            return
        activate(self.model, {name: 1.0})
        try:
            yield name
        finally:
            activate(self.model, {})
