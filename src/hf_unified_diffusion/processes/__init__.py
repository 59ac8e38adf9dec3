"""One noise each, from clean data at t=0 to pure noise at t=1, and the schedules and times they run on."""

from .categorical import draw_tokens, gumbel_argmax, shape_logits
from .gaussian import GaussianFlow
from .masked import Masked
from .noise_scheduler import NoiseScheduler
from .randomness import spawn_generators
from .schedules import COSINE, LINEAR, LOG_LINEAR, SCHEDULES, Schedule, differentiated, find_schedule, tabulated
from .times import (
    WARPS,
    antithetic_times,
    complementary_masks,
    complementary_times,
    find_warp,
    logit_normal_times,
    shifted,
    time_grid,
)

__all__ = [
    "COSINE",
    "LINEAR",
    "LOG_LINEAR",
    "SCHEDULES",
    "WARPS",
    "GaussianFlow",
    "Masked",
    "NoiseScheduler",
    "Schedule",
    "antithetic_times",
    "complementary_masks",
    "complementary_times",
    "differentiated",
    "draw_tokens",
    "find_schedule",
    "find_warp",
    "gumbel_argmax",
    "logit_normal_times",
    "shape_logits",
    "shifted",
    "spawn_generators",
    "tabulated",
    "time_grid",
]
