"""A namespace of a memory on the Hub: a dataset repository with one Parquet file."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

from ..hub import CardFacts, push_folder
from .arrow_storage import ArrowStorage

FILE_NAME = "memories.parquet"


def push_memories(
    storage: ArrowStorage,
    namespace: str,
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Send a namespace, as `ArrowStorage.export` writes it, to a dataset repository; `options` as of `push_folder`.

    What is forgotten here later stays in the commits there: delete the repository to forget it.

    Args:
        private: memories are somebody's own, so an existing public repository is refused unless this is False.

    Raises:
        ValueError: the repository is public.
        CorruptStorageError: a memory is damaged.

    Usage: `push_memories(storage, "anna", "me/anna-memories")`
    """
    if private and is_public(repo_id, options.get("token")):
        raise ValueError(f"a repository of memories must be private, got {repo_id!r}, which is public; see `private`")
    with TemporaryDirectory() as folder:
        num_memories = storage.export(namespace, Path(folder) / FILE_NAME)
        facts = CardFacts(
            what="Memories of one namespace, with their embeddings.",
            usage="from hf_unified_diffusion.memory.hub_transfer import pull_memories\n\n"
            'pull_memories(storage, "namespace", "{repo_id}")',
            numbers={"memories": num_memories},
            license=license,
            repo_type="dataset",
        )
        return push_folder(folder, repo_id, card=facts, private=private, repo_type="dataset", **options)


def is_public(repo_id: str, token: str | bool | None = None) -> bool:
    """Whether a dataset repository exists that everyone can read."""
    api = HfApi(token=token)
    name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
    try:
        return not api.dataset_info(name).private
    except RepositoryNotFoundError:
        return False


def pull_memories(
    storage: ArrowStorage,
    namespace: str,
    repo_id: str,
    *,
    trusted: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> int:
    """Take in what `push_memories` sent, all of it or nothing; gives their number.

    Args:
        trusted: keep each memory's status; else all of them enter quarantine.

    Raises ValueError for a file of other columns, values or another encoder.

    Usage: `pull_memories(storage, "anna", "me/anna-memories", trusted=True)`
    """
    file = hf_hub_download(repo_id, FILE_NAME, repo_type="dataset", revision=revision, token=token)
    return storage.import_(namespace, file, trusted=trusted)
