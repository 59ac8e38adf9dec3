"""Run by torchrun on two processes: a sharded network answers as a whole one. Use: `program.py CHECKPOINT`."""

import sys

import torch
import torch.distributed as dist
from transformers.distributed.configuration_utils import DistributedConfig

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from tests.modeling.tiny import MASK, canvas, noised, random_condition, random_ids

path = sys.argv[1]
whole = UnifiedDiffusionModel.from_pretrained(path).eval()
sharded = UnifiedDiffusionModel.from_pretrained(path, distributed_config=DistributedConfig(tp_size=2)).eval()

weight = sharded.shared_transformer.layers[0].self_attn.q_proj.weight
local = weight.to_local() if hasattr(weight, "to_local") else weight
assert local.shape[0] * 2 == whole.shared_transformer.layers[0].self_attn.q_proj.weight.shape[0], local.shape

ids, hidden, condition = random_ids(2, 6), noised(random_ids(2, 5, seed=1)), random_condition(2)
for forward in (
    lambda model: model(ids).logits,
    lambda model: model(hidden, timestep=torch.full((2,), 0.5), condition=condition).logits,
    lambda model: model(segments=[Segment("text", ids), canvas(hidden)], condition=condition).predictions[1],
    lambda model: model(hidden, timestep=torch.ones(2), cache=model(ids, use_cache=True).cache).logits,
):
    with torch.no_grad():
        torch.testing.assert_close(forward(sharded), forward(whole), atol=1e-4, rtol=1e-4)
losses = [model(ids, labels=ids).loss for model in (sharded, whole)]
torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
for loss in losses:
    loss.backward()
name = "shared_transformer.norm.weight"
torch.testing.assert_close(
    sharded.get_parameter(name).grad, whole.get_parameter(name).grad, atol=1e-4, rtol=1e-3, check_device=False
)
if dist.get_rank() == 0:
    print(f"sharded over {dist.get_world_size()} processes; mask token {MASK}")
dist.destroy_process_group()
