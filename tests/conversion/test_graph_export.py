"""Graphs give the network's answers: as a module, as traced, as ONNX and OpenVINO, and behind a pipeline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_unified_diffusion import (
    ArrowQuantConfig,
    ContextCache,
    MaskedDiffusionScheduler,
    Segment,
    UnifiedDiffusionCodePipeline,
    UnifiedDiffusionModel,
    UnifiedDiffusionTextPipeline,
    export_graph,
    graph_pipeline,
)
from hf_unified_diffusion.cli import main
from hf_unified_diffusion.conversion.denoising_graph import DenoisingGraph, GraphLinear, example_inputs
from hf_unified_diffusion.conversion.graph_export import graph_of, write_openvino
from hf_unified_diffusion.conversion.graph_runner import SESSIONS, GraphTransformer
from hf_unified_diffusion.quantization import quantize_model
from hf_unified_diffusion.quantization.modules import quantize_layer
from tests.modeling.tiny import MASK, assert_same, canvas, noised, open_model, random_ids, shared_model
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_tokenizer

SHAPES = [(1, 2, 3, 2), (3, 7, 1, 5), (2, 2, 9, 6)]  # batch, context, canvas, cached
IN_TORCH, IN_OTHERS = 2e-5, 1e-4  # float32, logits of a few units; other runtimes have other kernels


def quantized_folder(folder: Path, bits: int = 4) -> Path:
    """A tiny checkpoint of one layer whose trunk has `bits` bits, its embeddings 8."""
    torch.manual_seed(0)
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero would hide a wrong time or head
            parameter += 0.1 * torch.randn(parameter.shape)
    quantize_model(model, ArrowQuantConfig(bits=bits, group_size=16, int8_modules=["embeddings"]))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs with padding in the first row's cache and in the last row's context."""
    inputs["cached_mask"][0, 0] = False
    inputs["context_mask"][-1, -1] = False
    return inputs


def assert_answers(
    graph: DenoisingGraph, run: Callable[[dict[str, Tensor]], list], shapes=SHAPES, atol=IN_TORCH
) -> None:
    for shape in shapes:
        inputs = padded(example_inputs(graph.model.config, *shape))
        for found, expected in zip(run(inputs), graph(**inputs), strict=True):
            assert_same(torch.as_tensor(found), expected, atol)


def test_the_module_is_the_network_with_its_cache() -> None:
    model, graph = shared_model(), DenoisingGraph(shared_model(), "text")
    first, second, noisy = random_ids(2, 4), random_ids(2, 3, seed=1), noised(random_ids(2, 5, seed=2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    cache = model(first, use_cache=True).cache
    inputs = example_inputs(model.config, 2, 3, 5, 4)
    inputs |= {"context_ids": second, "context_mask": mask, "canvas_ids": noisy, "time": torch.tensor([0.5, 0.5])}
    inputs |= {"canvas_positions": 4 + mask.sum(dim=1)[:, None] + torch.arange(5).float()}
    inputs |= {"cached": torch.stack([torch.stack(kv) for kv in zip(cache.keys, cache.values, strict=True)])}
    segments = [Segment("text", second, mask=mask), canvas(noisy)]
    output = model(segments=segments, cache=cache, use_cache=True)
    logits, new = graph(**inputs)
    assert_same(logits[:, 3:], output.predictions[1])
    assert_same(logits[:, :3][mask], output.predictions[0][mask])
    for layer, (key, value) in enumerate(new):
        for found, kept in ((key, cache.keys[layer][:, :, 4:]), (value, cache.values[layer][:, :, 4:])):
            assert_same(found.transpose(1, 2)[mask], kept.transpose(1, 2)[mask])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_graph_unpacks_what_the_layer_unpacks(bits: int) -> None:
    torch.manual_seed(0)
    layer = quantize_layer(torch.nn.Linear(32, 24), bits, 16, torch.float32)
    x = torch.randn(3, 32)
    assert torch.equal(GraphLinear(layer)(x), torch.nn.functional.linear(x, layer.dequantized(), layer.bias))
    layer.merge(torch.randn(24, 3), torch.randn(3, 32))
    assert_same(GraphLinear(layer)(x), torch.nn.functional.linear(x, layer.dequantized(), layer.bias), IN_TORCH)


def test_traced_with_free_batch_and_lengths(tmp_path: Path) -> None:
    file = export_graph(quantized_folder(tmp_path / "source"), tmp_path / "graph", "torch_export", weights="packed")
    model = UnifiedDiffusionModel.from_pretrained(tmp_path / "source", dtype=torch.float32)
    program = torch.export.load(file).module()
    assert_answers(graph_of(model, "text", "dense"), lambda inputs: program(**inputs))
    with pytest.raises(ValueError, match="torch.export may hold pickle"):
        graph_pipeline(tmp_path / "graph")


def test_onnx_and_openvino_give_the_networks_answers_and_texts(tmp_path: Path) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    source, folders = quantized_folder(tmp_path / "source"), {name: tmp_path / name for name in SESSIONS}
    export_graph(source, folders["onnx"], "onnx", modality="code", weights="packed")
    # as export_graph does it, without a second conversion to ONNX
    shutil.copytree(folders["onnx"], folders["openvino"])
    write_openvino(folders["openvino"] / "graph.onnx", folders["openvino"] / "graph.xml")
    facts = json.loads((folders["openvino"] / "graph.json").read_text())
    (folders["openvino"] / "graph.json").write_text(json.dumps({**facts, "format": "openvino"}))

    eager = UnifiedDiffusionCodePipeline.from_pretrained(source, dtype=torch.float32)
    eager.set_progress_bar_config(disable=True)
    ways = [{"block_length": 4, "num_inference_steps": 6}, {"block_length": 4, "check_drafts": True}, {"suffix": "end"}]
    expected = [eager(["a", "a longer one"], max_new_tokens=12, seed=1, **way).texts for way in ways]
    graph = graph_of(eager.transformer, "code", "dense")
    for name, folder in folders.items():
        run = GraphTransformer.from_folder(folder).run
        shapes = [*SHAPES, (1, 1, 1, 1)]
        assert_answers(graph, lambda inputs, run=run: run({k: v.numpy() for k, v in inputs.items()}), shapes, IN_OTHERS)
        pipe = graph_pipeline(folder)
        pipe.set_progress_bar_config(disable=True)
        assert [pipe(["a", "a longer one"], max_new_tokens=12, seed=1, **way).texts for way in ways] == expected, name


def in_torch(graph: DenoisingGraph) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """A session that runs the module itself."""
    return lambda arrays: [x.numpy() for x in graph(**{name: torch.from_numpy(a) for name, a in arrays.items()})]


def test_a_graph_stands_in_for_the_network_in_a_pipeline() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    stand_in = GraphTransformer(model.config, in_torch(DenoisingGraph(model.requires_grad_(False), "text")), "text")
    scheduler = MaskedDiffusionScheduler(mask_token_id=model.config.mask_token_id)
    texts = []
    for network in (model, stand_in):
        pipe = UnifiedDiffusionTextPipeline(network, scheduler, tokenizer)
        pipe.set_progress_bar_config(disable=True)
        texts.append(pipe(["a", "bcd"], max_new_tokens=8, block_length=2, guidance_scale=1.5, seed=3).texts)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("segments", "options", "rule"),
    [
        ([Segment("code", random_ids(1, 2))], {}, "one context and one canvas of 'text'"),
        ([canvas(random_ids(1, 2)), canvas(random_ids(1, 2))], {}, "one context and one canvas"),
        ([canvas(random_ids(1, 2), reach=torch.ones(1, 2, dtype=torch.int64))], {}, "no reach"),
        ([canvas(random_ids(1, 2), positions=torch.zeros(1, 2, 3))], {}, "positions of a graph"),
        ([canvas(random_ids(1, 2), time=torch.ones(1, 2))], {}, "time of a graph's canvas"),
        ([canvas(random_ids(1, 2))], {"controls": ["any"]}, "no ControlNets"),
    ],
)
def test_a_graph_refuses_what_it_does_not_have(segments: list[Segment], options: dict, rule: str) -> None:
    graph = DenoisingGraph(open_model(), "text")
    with pytest.raises(ValueError, match=rule):
        GraphTransformer(graph.model.config, in_torch(graph), "text")(segments, cache=ContextCache(), **options)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": "tflite"}, "format must be one of"),
        ({"weights": "bf16"}, "weights must be one of"),
        ({"weights": "packed", "format": "torch_export"}, "need a quantized checkpoint"),
        ({"modality": "image", "format": "torch_export"}, "must be one of tokens"),
    ],
)
def test_the_door_states_its_rules(tmp_path: Path, changes: dict[str, str], rule: str) -> None:
    source = save_tiny_checkpoint(tmp_path / "source")
    with pytest.raises(ValueError, match=rule):
        export_graph(source, tmp_path / "graph", **changes)
    assert not (tmp_path / "graph").exists()
    options = [part for name, value in changes.items() for part in (f"--{name}", value)]
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(source), str(tmp_path / "graph"), *options])
    assert stopped.value.code == 2


def test_compiled_with_free_lengths() -> None:
    graph = DenoisingGraph(shared_model(), "text")
    compiled = torch.compile(graph, backend="aot_eager", dynamic=True, fullgraph=True)
    assert_answers(graph, lambda inputs: compiled(**inputs))
    assert graph.model.config.mask_token_id == MASK
    assert bool((compiled(**example_inputs(graph.model.config, 1, 2, 2, 2))[0][..., MASK] == -torch.inf).all())
