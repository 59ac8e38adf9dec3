"""Run by torchrun on two processes: a sharded network answers and trains as a whole one.

Use: `sharded_program.py ANSWERING TRAINING`, two checkpoints.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from tests.modeling.tiny import MASK, canvas, noised, random_condition, random_ids

QUERIES = "shared_transformer.layers.0.self_attn.q_proj.weight"
NORM = "shared_transformer.norm.weight"


def whole_and_sharded(path: str, **plan: int) -> tuple[UnifiedDiffusionModel, UnifiedDiffusionModel]:
    """The same network twice; of the second, this process has half of each matrix."""
    whole = UnifiedDiffusionModel.from_pretrained(path)
    sharded = UnifiedDiffusionModel.from_pretrained(path, distributed_config=DistributedConfig(**plan))
    mine = sharded.get_parameter(QUERIES)
    assert local(mine).numel() * 2 == whole.get_parameter(QUERIES).numel(), mine.shape
    return whole, sharded


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def answers_as_one(path: str) -> None:
    """Tensor parallel: the same logits, losses and gradients."""
    whole, sharded = (model.eval() for model in whole_and_sharded(path, tp_size=2))
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
    gradients = [model.get_parameter(NORM).grad for model in (sharded, whole)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3, check_device=False)


def trains_as_one(path: str) -> None:
    """FSDP2 by transformers: the same losses and, after three steps, the same weights."""
    whole, sharded = whole_and_sharded(path, fsdp_size=2)
    assert isinstance(sharded.get_parameter(QUERIES), DTensor)
    ids, rank = random_ids(4, 6), dist.get_rank()
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


if __name__ == "__main__":
    answering, training = sys.argv[1:]
    answers_as_one(answering)
    trains_as_one(training)
    if dist.get_rank() == 0:
        print(f"answered and trained over {dist.get_world_size()} processes; mask token {MASK}")
    dist.destroy_process_group()
