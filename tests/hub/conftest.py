"""Points the libraries at a Hub of this machine, with a cache of the test's own."""

import logging

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from transformers.utils import hub as transformers_hub

from tests.hub.loopback_hub import TOKEN, LoopbackHub

CHUNK_BYTES = 1 << 17  # what arrives of a download is kept in pieces of so many


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """The state of a Hub that all libraries talk to."""
    with LoopbackHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        yield server.state
        enable_progress_bars()
        huggingface_hub.close_session()


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path_factory):
    """Forget everything that was downloaded."""

    def forget() -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))

    return forget
