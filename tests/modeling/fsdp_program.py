"""Run by torchrun on two processes: a network in shards trains as a whole one. Use: `program.py CHECKPOINT`."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from tests.modeling.tiny import noised, random_ids

path = sys.argv[1]
whole = UnifiedDiffusionModel.from_pretrained(path)
sharded = UnifiedDiffusionModel.from_pretrained(path, distributed_config=DistributedConfig(fsdp_size=2))
name = "shared_transformer.layers.0.self_attn.q_proj.weight"
weight = sharded.get_parameter(name)
assert isinstance(weight, DTensor) and weight.to_local().numel() * 2 == whole.get_parameter(name).numel()
ids = random_ids(4, 6)
rank = dist.get_rank()
optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (whole, sharded)]
for step in range(3):
    hidden, time = noised(ids, seed=step), torch.full((4,), 0.5)
    losses = []
    for model, rows in ((whole, slice(0, 4)), (sharded, slice(2 * rank, 2 * rank + 2))):
        labels = ids.masked_fill(hidden == ids, -100)
        weight = torch.ones(4, 6)
        losses.append(model(hidden[rows], timestep=time[rows], labels=labels[rows], loss_weight=weight[rows]).loss)
        losses[-1].backward()
    shared = losses[1].detach().clone()
    dist.all_reduce(shared)
    torch.testing.assert_close(shared / 2, losses[0].detach(), atol=1e-4, rtol=1e-4)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
state = sharded.state_dict()
state = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
for key, value in whole.state_dict().items():
    torch.testing.assert_close(state[key], value, atol=1e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
if rank == 0:
    print(f"trained over {dist.get_world_size()} processes")
dist.destroy_process_group()
