"""Which solver ends nearest to where the flow leads, pass for pass?

    python benchmarks/solvers.py                                   # pictures of 128 x 128 pixels, and speech
    python benchmarks/solvers.py --size 512 --captions 1 --reference_steps 64 --kinds pictures

The reference is Euler's method in many steps from the same noise; what is compared are the tokens, whose deviation
is told beside. The network, its guidance and its times stay as they are by default.
"""

import argparse
from collections.abc import Callable

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin
from measure import Row, argument_parser, report, start
from torch import Tensor

from hf_unified_diffusion import UnifiedDiffusionImagePipeline, UnifiedDiffusionSpeechPipeline
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.schedulers.flow_matching import flow_scheduler, picture_scheduler

CAPTIONS = ["a red circle", "a blue square above a green star", "a cat", "an anchor"]
LINES = ["The cat sat on the mat.", "We will meet at seven in the evening."]
Made = Callable[[SchedulerMixin, int], tuple[Tensor, int]]


def solvers(shift: float | None) -> dict[str, SchedulerMixin]:
    """Solvers by name, with times shifted by tokens, or by a given shift."""
    by_tokens = shift is None
    dpm = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": by_tokens}
    told = {} if by_tokens else {"flow_shift": shift}
    return {
        "Euler": flow_scheduler() if by_tokens else flow_scheduler(use_dynamic_shifting=False, shift=shift),
        "DPM-Solver++ 2": DPMSolverMultistepScheduler(**dpm, **told),
        "UniPC 2": picture_scheduler(use_dynamic_shifting=by_tokens, **told),
    }


def compared(make: Made, shift: float | None, args: argparse.Namespace) -> list[Row]:
    """Distance from the reference by solver and steps."""
    reference, _ = make(solvers(shift)["Euler"], args.reference_steps)
    rows: list[Row] = []
    for name, scheduler in solvers(shift).items():
        for steps in args.steps:
            found, passes = make(scheduler, steps)
            error = (found - reference).square().mean().sqrt().item()
            spread = found.std().item() / reference.std().item()
            rows.append({"solver": name, "steps": steps, "passes": passes, "distance": error, "deviation": spread})
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--kinds", nargs="+", default=["pictures", "speech"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--captions", type=int, default=len(CAPTIONS))
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 10, 12, 16])
    parser.add_argument("--reference_steps", type=int, default=96)
    args, settings = start(parser)
    folder, tables = args.checkpoint or EMBEDDED_CHECKPOINT, {}
    told = {"seed": args.seed, "output_type": "latent"}
    if "pictures" in args.kinds:
        draw = UnifiedDiffusionImagePipeline.from_pretrained(folder).to(args.device)

        def pictures(scheduler: SchedulerMixin, steps: int) -> tuple[Tensor, int]:
            draw.scheduler = scheduler
            captions = CAPTIONS[: args.captions]
            output = draw(captions, args.size, args.size, num_inference_steps=steps, **told)
            return output.images.float(), output.num_forward_passes

        draw.set_progress_bar_config(disable=True)
        tables[f"Pictures of {args.size} x {args.size} pixels"] = compared(pictures, None, args)
    if "speech" in args.kinds:
        speak = UnifiedDiffusionSpeechPipeline.from_pretrained(folder).to(args.device)
        shift = float(speak.scheduler.config.shift)

        def speech(scheduler: SchedulerMixin, steps: int) -> tuple[Tensor, int]:
            speak.scheduler = scheduler
            output = speak(LINES, num_inference_steps=steps, **told)
            return torch.cat(output.audios).float(), output.num_forward_passes

        speak.set_progress_bar_config(disable=True)
        tables["Speech"] = compared(speech, shift, args)
    notes = [
        f"Distance: root mean square from Euler's method in {args.reference_steps} steps; deviation: over its own."
    ]
    report(f"solvers_{args.size}", tables, settings, notes, args.output)


if __name__ == "__main__":
    main()
