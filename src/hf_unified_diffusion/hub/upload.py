"""A folder to a repository in one commit; what an interrupted push has sent already is not sent again."""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import EntryNotFoundError

from .model_card import GENERATED, LIBRARY, CardFacts, write_card

CARD_NAME = "README.md"
# weights as transformers, diffusers, PEFT and this package name them, in one file or several, and their indexes
WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model|adapter_model)(\.arrowquant)?(-\d+-of-\d+)?"
    r"\.(safetensors|parquet|bin)(\.index\.json)?"
)


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    card: CardFacts | None = None,
    private: bool = True,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> CommitInfo:
    """Send a folder to the Hub; the repository and the branch are made where they are missing.

    Weights of a format or of shards that the push does not bring are removed from the folders it brings weights to, in
    the same commit. Large files go to the Hub's storage before the commit and are known there by their SHA-256:
    after an interruption the same push sends only those that are missing.

    Args:
        card: makes README.md, unless the repository has one that somebody wrote.
        private: whether a new repository is; one that exists keeps its visibility.
        revision: a branch; None is the main one.
        subfolder: where in the repository the files go; then without a card.

    Raises:
        ValueError: there is no such folder.
        HfHubHTTPError: what the Hub answers, no write access for instance.
        RuntimeError: a large file could not be sent; push again to go on.

    Usage: `push_folder("checkpoint", "me/checkpoint", revision="int4")`
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder, got {str(folder)!r}")
    api = HfApi(library_name=LIBRARY, token=token)
    repo_id = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    if card is not None and subfolder is None and not has_own_card(api, repo_id, revision, repo_type):
        (folder / CARD_NAME).write_text(write_card(card, repo_id))
    sent = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    there = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
    with warnings.catch_warnings():  # Parquet is the format of the weights, not of a dataset
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder,
            revision=revision,
            repo_type=repo_type,
            create_pr=create_pr,
            commit_message=commit_message or "Upload by hf_unified_diffusion",
            commit_description=commit_description,
            delete_patterns=stale_weights(sent, there, subfolder),
        )


def has_own_card(api: HfApi, repo_id: str, revision: str | None, repo_type: str) -> bool:
    """Whether the repository has a README.md that was not generated."""
    try:
        card = api.hf_hub_download(repo_id, CARD_NAME, revision=revision, repo_type=repo_type)
    except EntryNotFoundError:
        return False
    return GENERATED not in Path(card).read_text()


def stale_weights(sent: Iterable[str], there: Iterable[str], subfolder: str | None) -> list[str]:
    """Weight files of a repository, relative to `subfolder`, in the folders that get others; none that is sent."""
    sent = set(sent)
    filled = {PurePosixPath(name).parent for name in sent if WEIGHTS.fullmatch(PurePosixPath(name).name)}
    prefix = "" if subfolder is None else f"{subfolder.strip('/')}/"
    inside = [PurePosixPath(name.removeprefix(prefix)) for name in there if name.startswith(prefix)]
    return [
        path.as_posix()
        for path in inside
        if path.parent in filled and WEIGHTS.fullmatch(path.name) and path.as_posix() not in sent
    ]
