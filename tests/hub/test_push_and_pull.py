"""Every kind of thing goes to the Hub and comes back as it was, with its card."""

import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoModel, pipeline

from hf_unified_diffusion import (
    ArrowQuantConfig,
    ArrowStorage,
    MaskedDiffusionScheduler,
    UnifiedControlNetModel,
    UnifiedDiffusionImagePipeline,
    UnifiedDiffusionModel,
    UnifiedDiffusionTextPipeline,
)
from hf_unified_diffusion.hub import push_adapter, push_folder
from hf_unified_diffusion.hub.upload import stale_weights
from hf_unified_diffusion.memory.hub_transfer import pull_memories, push_memories
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler
from tests.codecs.vaes import tiny_dc
from tests.hub.loopback_hub import TOKEN
from tests.memory.stores import vectors
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [
    # huggingface_hub 2.4 sends parts in a way that its HTTP client deprecates
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # diffusers 0.42 hands huggingface_hub 2.4 an argument that it no longer takes
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning"),
    # PEFT 0.21 asks transformers 5.24 for a property that it deprecates
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
ROOT = Path(__file__).parents[2]
SHORT = {"max_new_tokens": 6, "num_inference_steps": 3, "seed": 0}
QUANTIZED = ArrowQuantConfig(bits=4, group_size=32, weights_format="parquet")


def assert_bit_equal(found, expected):
    state, wanted = found.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) and state[name].dtype == wanted[name].dtype for name in wanted)


def quantized_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    return UnifiedDiffusionModel.from_pretrained(tmp_path / "dense", quantization_config=QUANTIZED)


def weights_of(files):
    return sorted(name for name in files if "model." in name)


def test_a_model_on_two_branches_in_two_formats(hub, tmp_path):
    dense, quantized = tiny_model(), quantized_model(tmp_path)
    dense.checkpoint_facts = {"license": "apache-2.0", "base_model": "them/base", "evaluation": {"nats": 2.5}}
    dense.push_to_hub("me/model")
    quantized.push_to_hub("me/model", revision="int4")
    assert weights_of(hub.files("me/model")) == ["model.safetensors"]
    assert weights_of(hub.files("me/model", "int4")) == ["model.arrowquant.parquet"]  # the other format is gone
    assert_bit_equal(AutoModel.from_pretrained("me/model"), dense)
    assert_bit_equal(AutoModel.from_pretrained("me/model", revision="int4"), quantized)
    assert_bit_equal(UnifiedDiffusionModel.from_pretrained("me/model", revision="int4"), quantized)
    card = ModelCard.load("me/model").data
    assert card.library_name == "hf_unified_diffusion" and card.license == "apache-2.0"
    assert card.base_model == "them/base" and "unified-diffusion" in card.tags
    text = hub.files("me/model")["README.md"].decode()
    num_parameters = sum(p.numel() for p in dense.parameters())
    assert f"| parameters | {num_parameters:,} |" in text and "| nats | 2.5 |" in text
    assert UnifiedDiffusionModel.from_pretrained("me/model").checkpoint_facts["license"] == "apache-2.0"


def test_a_controlnet(hub):
    controlnet = UnifiedControlNetModel.from_transformer(tiny_model(), num_blocks=1)
    controlnet.push_to_hub("me/control")
    assert HfApi().repo_info("me/control").private
    assert_bit_equal(UnifiedControlNetModel.from_pretrained("me/control"), controlnet)
    assert "UnifiedControlNetModel" in hub.files("me/control")["README.md"].decode()


def test_private_unless_told_otherwise(hub, monkeypatch):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257)
    scheduler.push_to_hub("me/hidden")
    scheduler.push_to_hub("me/open", private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_somebody_else")
    assert MaskedDiffusionScheduler.from_pretrained("me/open").config.mask_token_id == 257
    with pytest.raises(RepositoryNotFoundError):
        HfApi().list_repo_files("me/hidden")
    assert MaskedDiffusionScheduler.from_pretrained("me/hidden", token=TOKEN).config.mask_token_id == 257


def test_pipelines_of_diffusers(hub):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257, temperature=0.5, ordering="margin")
    pipe = UnifiedDiffusionTextPipeline(tiny_model(), scheduler, tiny_tokenizer())
    pipe.push_to_hub("me/pipe")
    for cls in (DiffusionPipeline, UnifiedDiffusionTextPipeline):
        loaded = cls.from_pretrained("me/pipe")
        assert type(loaded) is type(pipe) and loaded.scheduler.config.ordering == "margin"
        assert_bit_equal(loaded.transformer, pipe.transformer)
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
    assert loaded("ab", **SHORT).texts == pipe("ab", **SHORT).texts
    assert 'DiffusionPipeline.from_pretrained("me/pipe")' in hub.files("me/pipe")["README.md"].decode()


def test_the_pipeline_that_draws(hub):
    pipe = UnifiedDiffusionImagePipeline(tiny_model(), flow_scheduler(), tiny_tokenizer(), tiny_dc(128))
    pipe.push_to_hub("me/draws")
    assert HfApi().repo_info("me/draws").private
    loaded = DiffusionPipeline.from_pretrained("me/draws")
    assert type(loaded) is UnifiedDiffusionImagePipeline
    for name in ("transformer", "vae"):
        assert_bit_equal(getattr(loaded, name), getattr(pipe, name))


def test_the_task_pipeline_and_what_reads_one_model(hub, tmp_path):
    scheduler = MaskedDiffusionScheduler(mask_token_id=257, temperature=0.5)
    for part in (quantized_model(tmp_path), scheduler, tiny_tokenizer()):
        part.save_pretrained(tmp_path / "whole")
    write = pipeline("unified-diffusion", model=str(tmp_path / "whole"))
    write.push_to_hub("me/task")
    assert weights_of(hub.files("me/task")) == ["model.arrowquant.parquet"]
    again = pipeline("unified-diffusion", model="me/task")
    assert_bit_equal(again.model, write.model)
    assert again.scheduler.config.temperature == 0.5
    assert again("ab", **SHORT) == write("ab", **SHORT)
    single = UnifiedDiffusionTextPipeline.from_pretrained("me/task", revision="main")
    assert_bit_equal(single.transformer, write.model)
    assert single.scheduler.config.temperature == 0.5
    assert "auto_map" not in hub.files("me/task")["config.json"].decode()
    assert not any(name.endswith(".py") for name in hub.files("me/task"))


def test_an_adapter(hub, tmp_path):
    adapted = peft.get_peft_model(
        tiny_model(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    push_adapter(tmp_path / "adapter", "me/adapter", license="mit", numbers={"validation nats": 1.5})
    files = hub.files("me/adapter")
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert "license: mit" in files["README.md"].decode() and "| validation nats | 1.5 |" in files["README.md"].decode()
    assert_bit_equal(peft.PeftModel.from_pretrained(tiny_model(), "me/adapter"), adapted)
    with pytest.raises(ValueError, match=r"must hold adapter_config\.json"):
        push_adapter(tmp_path, "me/adapter")


def test_memories_are_a_private_dataset(hub, tmp_path):
    with ArrowStorage(tmp_path / "one", "random") as storage, ArrowStorage(tmp_path / "two", "random") as other:
        storage.add("anna", ["tea", "naïve 🦀"], vectors(2), source="chat")
        push_memories(storage, "anna", "me/anna", license="cc0-1.0")
        assert pull_memories(other, "anna", "me/anna", trusted=True) == 2
        told, expected = ([(m.payload, m.source) for m in each.memories("anna")] for each in (other, storage))
        assert told == expected
        embeddings = [torch.from_numpy(m.embedding.copy()) for s in (other, storage) for m in s.memories("anna")]
        assert torch.equal(embeddings[0], embeddings[2]) and torch.equal(embeddings[1], embeddings[3])
        assert hub.repositories["dataset/me/anna"].private
        HfApi().create_repo("me/everyone", repo_type="dataset", private=False)
        with pytest.raises(ValueError, match="must be private"):
            push_memories(storage, "anna", "me/everyone")
        assert hub.files("me/everyone", kind="dataset") == {}


def test_a_card_that_somebody_wrote_stays(hub, tmp_path):
    model = tiny_model()
    model.push_to_hub("me/model", commit_message="first")
    model.checkpoint_facts = {"license": "mit"}
    model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/model")
    assert "license: mit" in hub.files("me/model")["README.md"].decode()  # a generated card follows
    HfApi().upload_file(path_or_fileobj=b"My own words.", path_in_repo="README.md", repo_id="me/model")
    model.push_to_hub("me/model")
    assert hub.files("me/model")["README.md"] == b"My own words."


def test_only_weights_that_are_replaced_are_removed():
    there = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "other.safetensors",
        "transformer/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert stale_weights(["model.arrowquant.parquet", "config.json"], there, None) == there[:2]
    assert stale_weights(["transformer/model-00001-of-00002.safetensors"], there, None) == [there[3]]
    assert stale_weights(["model.arrowquant.parquet"], there, "transformer") == ["model.safetensors"]
    assert stale_weights(["scheduler_config.json"], there, None) == []
    assert stale_weights(["model.safetensors", "transformer/model.safetensors"], there, None) == there[:2]


def test_bad_input(hub, tmp_path):
    with pytest.raises(ValueError, match="folder must be a folder"):
        push_folder(tmp_path / "nothing", "me/nothing")
    with pytest.raises(ValueError, match="remote_code must be False"):
        MaskedDiffusionScheduler(mask_token_id=1).push_to_hub("me/scheduler", remote_code=True)
    assert hub.repositories == {}
    with pytest.raises(OSError, match="me/nothing"):
        UnifiedDiffusionTextPipeline.from_pretrained("me/nothing")


def test_remote_code_is_opted_in_and_does_not_stick(hub, tmp_path):
    tiny_model().push_to_hub("me/shim", remote_code=True)
    assert set(hub.files("me/shim")) >= {"hub_shim.py", "config.json", "model.safetensors"}
    loaded = AutoModel.from_pretrained("me/shim")  # with the package imported nobody is asked for trust
    assert_bit_equal(loaded, tiny_model())
    assert not any(name.startswith("transformers_modules") and "shim" in name for name in sys.modules)
    loaded.save_pretrained(tmp_path)
    assert "hub_shim" not in (tmp_path / "config.json").read_text()


def test_without_the_import_the_shim_loads_the_package(hub, tmp_path):
    for part in (tiny_model(), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "whole")
    write = pipeline("unified-diffusion", model=str(tmp_path / "whole"))
    write.push_to_hub("me/shim", remote_code=True)
    environment = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(Path(__file__).with_name("remote_code_program.py")), "me/shim"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == repr(write("ab", **SHORT)[0]["generated_text"].encode())
