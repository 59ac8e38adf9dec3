"""Large files go and come in pieces; what has arrived is not sent again."""

import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from tests.hub.conftest import CHUNK_BYTES
from tests.hub.loopback_hub import PART_BYTES
from tests.hub.test_push_and_pull import assert_bit_equal

# huggingface_hub 2.4 sends parts in a way that its HTTP client deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SHARD, CUT = 600_000, 1_000_000  # bytes


@pytest.fixture(scope="module")
def model():
    """A few megabytes."""
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 256}
    return UnifiedDiffusionModel(UnifiedDiffusionConfig(vocab_size=512, mask_token_id=511, **shape)).eval()


@pytest.mark.parametrize("weights_format", ["safetensors", "parquet"])
def test_an_interrupted_push_goes_on(hub, fresh_cache, model, weights_format):
    how = {"max_shard_size": SHARD, "weights_format": weights_format}
    hub.accept_objects = 2
    with pytest.raises(RuntimeError, match="Error while uploading"):
        model.push_to_hub("me/large", **how)
    assert hub.files("me/large") == {}  # no commit of a part
    arrived, hub.accept_objects = set(hub.objects), None
    assert 1 <= len(arrived) <= 2
    before = hub.received.copy()
    model.push_to_hub("me/large", **how)
    assert all(hub.received[oid] == before[oid] for oid in arrived)
    shards = [data for name, data in hub.files("me/large").items() if "-of-" in name]
    assert len(shards) > 3 and max(map(len, shards)) > PART_BYTES
    assert_bit_equal(UnifiedDiffusionModel.from_pretrained("me/large"), model)


def test_a_cut_connection_is_tried_again(hub, model):
    hub.cut_parts = 1
    model.push_to_hub("me/cut")
    (oid,) = hub.objects
    size = len(hub.objects[oid])
    assert size < hub.received[oid] <= size + PART_BYTES  # one part went twice, not the file
    assert_bit_equal(UnifiedDiffusionModel.from_pretrained("me/cut"), model)


def test_a_cut_download_goes_on_where_it_was(hub, fresh_cache, model):
    model.push_to_hub("me/down")
    (oid,) = hub.objects
    hub.cut_download_after = CUT
    assert_bit_equal(UnifiedDiffusionModel.from_pretrained("me/down"), model)  # within one call
    assert hub.served[oid] - len(hub.objects[oid]) == CUT % CHUNK_BYTES  # only the last piece came twice


def test_a_second_process_fetches_only_the_files_that_are_missing(hub, tmp_path, model):
    """huggingface_hub goes on within a file in one call alone: what is large is worth several files."""
    model.push_to_hub("me/down", max_shard_size=SHARD)
    hub.downloads_left = 3
    with pytest.raises(HfHubHTTPError):
        snapshot_download("me/down", cache_dir=tmp_path, max_workers=1)
    arrived = dict(hub.served)
    hub.downloads_left = None
    folder = snapshot_download("me/down", cache_dir=tmp_path)
    whole = [oid for oid, size in arrived.items() if size >= len(hub.objects[oid])]
    assert len(whole) == 3 and all(hub.served[oid] == arrived[oid] for oid in whole)
    assert_bit_equal(UnifiedDiffusionModel.from_pretrained(folder), model)
