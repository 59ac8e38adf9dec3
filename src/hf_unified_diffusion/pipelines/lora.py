"""LoRA on pipelines, in the names of diffusers. Needs PEFT."""

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..hub import push_adapter
from ..modeling import adapters
from ..modeling.adapter_folders import check_adapter_side

COMPONENT = "transformer"


def row_adapters(
    model: nn.Module, names: Sequence[str | None] | None, num_rows: int, repeats: int = 1
) -> list[str] | None:
    """Names for `adapters.per_row`, from one for each prompt, each `repeats` times; None stays None.

    Raises ValueError for another number of names, a name that was not loaded, and fused adapters.
    """
    if names is None:
        return None
    if isinstance(names, str) or len(names) * repeats != num_rows:
        got = repr(names) if isinstance(names, str) else len(names)
        raise ValueError(f"adapter_names must be one for each of {num_rows // repeats} rows, got {got}")
    adapters.check_names(model, [name for name in names if name is not None])
    adapters.check_not_fused(model)
    return [adapters.BASE if name is None else name for name in names for _ in range(repeats)]


class LoraMixin:
    """For a `DiffusionPipeline` whose score network is the component `transformer`; put it before that class.

    Usage:
        pipe.load_lora_weights("adapters/poems", adapter_name="poems")
        pipe.load_lora_weights("me/letters", adapter_name="letters", revision="v2")
        pipe.set_adapters(["poems", "letters"], [0.7, 0.3])
    """

    _lora_loadable_modules = [COMPONENT]
    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **hub: Any,
    ) -> None:
        """Load an adapter of PEFT, and let it alone be active, with weight 1.

        Args:
            pretrained_model_name_or_path: a folder with `adapter_config.json` and safetensors, or a repository.
            adapter_name: default "default_0", "default_1", ...
            hotswap: `adapter_name` is an adapter that was loaded; it keeps name, weight and layers and gets these
                values. For adapters of the same layers and ranks.
            hub: `revision`, `token`, `cache_dir`, `subfolder`, ...

        Raises:
            ValueError: a name that is taken, an adapter that does not fit, or one of the autoregressive side.
            OSError: files are missing.
            ImportError: PEFT is not installed.

        Usage: `pipe.load_lora_weights("adapters/poems", adapter_name="poems")`
        """
        loaded = adapters.adapter_names(self.transformer)
        folder = adapters.find_adapter(pretrained_model_name_or_path, **hub)
        check_adapter_side(folder, "diffusion")
        if hotswap:
            if adapter_name is None:
                raise ValueError(f"hotswap needs the adapter_name of a loaded adapter, one of {loaded}, got None")
            adapters.swap(self.transformer, folder, adapter_name)
            return
        name = f"default_{len(loaded)}" if adapter_name is None else adapter_name
        if name in loaded or name == adapters.BASE or not name:
            raise ValueError(f"adapter_name must be new and not {adapters.BASE!r}, got {name!r}")
        adapters.inject(self.transformer, folder, name)
        adapters.activate(self.transformer, {name: 1.0})

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Let these adapters be active together, each times its weight; the network then gets the sum.

        Args:
            adapter_weights: one number for all or one each; default 1.

        Raises:
            ValueError: a name that was not loaded, another number of weights, or fused adapters.

        Usage: `pipe.set_adapters(["poems", "letters"], [0.7, 0.3])`
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = 1.0 if adapter_weights is None else adapter_weights
        each = [float(weights)] * len(names) if isinstance(weights, int | float) else list(weights)
        if len(each) != len(names):
            raise ValueError(f"adapter_weights must be one number or {len(names)} of them, got {len(each)}")
        adapters.activate(self.transformer, dict(zip(names, each, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that add to the network now."""
        return list(adapters.weights_of(self.transformer))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all loaded adapters, by component."""
        names = adapters.adapter_names(self.transformer)
        return {COMPONENT: names} if names else {}

    def disable_lora(self) -> None:
        """Leave all adapters out, until `enable_lora`."""
        adapters.check_not_fused(self.transformer)
        for layer in adapters.lora_layers(self.transformer):
            layer.enable_adapters(False)

    def enable_lora(self) -> None:
        """Let the adapters add that were active before `disable_lora`."""
        adapters.check_not_fused(self.transformer)
        for layer in adapters.lora_layers(self.transformer):
            layer._disable_adapters = False

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters; ValueError for a name that was not loaded, and for fused ones."""
        adapters.check_not_fused(self.transformer)
        adapters.remove(self.transformer, [adapter_names] if isinstance(adapter_names, str) else list(adapter_names))

    def unload_lora_weights(self) -> None:
        """Forget all adapters and their layers; what was fused stays in the weights, as with diffusers."""
        if names := adapters.adapter_names(self.transformer):
            adapters.remove(self.transformer, names)

    def fuse_lora(
        self,
        components: Sequence[str] = (COMPONENT,),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add adapters to the weights, so that they cost nothing at run time.

        Args:
            lora_scale: a further factor on each adapter's weight.
            safe_fusing: refuse weights that are not finite.
            adapter_names: default: the active ones.

        Quantized weights keep their codes, and the adapters beside them in INT8.
        Raises ValueError for other components, unknown names, and adapters that are fused already.

        Usage: `pipe.set_adapters(["poems"], [0.8]); pipe.fuse_lora()`
        """
        if tuple(components) != (COMPONENT,):
            raise ValueError(f"components must be [{COMPONENT!r}], got {list(components)}")
        names = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        if not names:
            raise ValueError("fusing needs an active adapter, got none")
        adapters.fuse(self.transformer, names, lora_scale, safe_fusing)

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again, within rounding; they are then active as they were.

        Raises ValueError where none is fused.
        """
        adapters.unfuse(self.transformer)

    @property
    def fused_loras(self) -> list[str]:
        """Names of the adapters in the weights."""
        return adapters.fused_names(self.transformer)

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are in the weights."""
        return len(self.fused_loras)

    def save_lora_weights(
        self,
        save_directory: str | os.PathLike[str],
        adapter_name: str,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> None:
        """Write an adapter in PEFT's format, and with `push_to_hub` send it (`options` as of `push_adapter`).

        Usage: `pipe.save_lora_weights("adapters/poems", "poems", push_to_hub=True, repo_id="me/poems")`
        """
        adapters.save_adapter(self.transformer, save_directory, adapter_name)
        if push_to_hub:
            push_adapter(save_directory, os.path.basename(save_directory) if repo_id is None else repo_id, **options)
