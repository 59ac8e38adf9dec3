"""`push_to_hub` of models, pipelines, schedulers and adapters: private unless told otherwise, with a card."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo

from .model_card import CardFacts
from .remote_code import add_remote_code
from .upload import push_folder

if TYPE_CHECKING:

    class _Base:
        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any: ...

else:
    _Base = object

UPLOAD_OPTIONS = (
    "private",
    "revision",
    "subfolder",
    "token",
    "commit_message",
    "commit_description",
    "create_pr",
    "remote_code",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class PushMixin(_Base):
    """Replaces `push_to_hub` of transformers and diffusers; put it before their classes, and define `card_facts`."""

    def card_facts(self) -> CardFacts:
        """What the card of this object tells."""
        raise NotImplementedError(f"{type(self).__name__} must say what its card tells")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        create_pr: bool = False,
        remote_code: bool = False,
        **save_options: Any,
    ) -> CommitInfo:
        """Save into a temporary folder and send it, see `push_folder`.

        Args:
            repo_id: "user/name", or "name" among one's own.
            private: whether a new repository is.
            remote_code: add a shim of two lines with which `pipeline(model=repo_id, trust_remote_code=True)` works
                where the package is installed and not imported; everyone without the import is then asked for trust.
            save_options: of `save_pretrained` (`weights_format`, `max_shard_size`, ...).

        Raises ValueError and HfHubHTTPError as `push_folder` does.

        Usage: `model.push_to_hub("me/model", revision="int4", weights_format="parquet")`
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_options)
            if remote_code:
                add_remote_code(folder)
            return push_folder(
                folder,
                repo_id,
                card=self.card_facts(),
                private=private,
                revision=revision,
                subfolder=subfolder,
                token=token,
                commit_message=commit_message,
                commit_description=commit_description,
                create_pr=create_pr,
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the class behind this one; `push_to_hub=True` pushes too, as `push_to_hub` does, and takes its options."""
        upload = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs} if push_to_hub else {}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub:
            self.push_to_hub(Path(save_directory).name if repo_id is None else repo_id, **upload, **kwargs)
        return saved


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    numbers: Mapping[str, Any] | None = None,
    **options: Any,
) -> CommitInfo:
    """Send a PEFT adapter folder: its configuration and its safetensors weights, no other file.

    Args:
        license, numbers: for the card; rank, alpha and layers are in it anyway.
        options: as of `push_folder`.

    Raises ValueError where one of the two files is missing.

    Usage: `push_adapter("adapters/poems", "me/poems", numbers={"validation nats per token": 2.31})`
    """
    for name in ADAPTER_FILES:
        if not (Path(folder) / name).is_file():
            raise ValueError(f"an adapter folder must hold {name}, got {str(folder)!r}")
    config = json.loads((Path(folder) / ADAPTER_FILES[0]).read_text())
    shape = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "layers": config.get("target_modules")}
    base = config.get("base_model_name_or_path")
    facts = CardFacts(
        what="A LoRA adapter for a unified diffusion model.",
        usage='pipe.load_lora_weights("{repo_id}", adapter_name="mine")\npipe.set_adapters("mine", 1.0)',
        numbers={**shape, **(numbers or {})},
        license=license,
        base_model=None if base is None or Path(base).is_absolute() else base,
        tags=["lora", "peft"],
    )
    with TemporaryDirectory() as sent:
        for name in ADAPTER_FILES:
            shutil.copy(Path(folder) / name, sent)
        return push_folder(sent, repo_id, card=facts, **options)
