"""INT2 through a learned table beside the fixed one: rounding error of the matrices of one layer.

    python benchmarks/learned_table.py --checkpoint runs/s3_canvas/model     # a dense folder

The ceiling is 0; the control is INT4, which says little for a network trained against that rounding, whose weights lie
on its levels already. One table a matrix; bits per weight count it.
"""

from measure import argument_parser, report, start

from hf_unified_diffusion import UnifiedDiffusionModel
from hf_unified_diffusion.quantization import dequantize, learn_table, quantize

parser = argument_parser(__doc__)
parser.add_argument("--layer", type=int, default=12)
parser.add_argument("--parts", nargs="+", default=["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])
parser.add_argument("--group_size", type=int, default=96)
args, shown = start(parser)
model = UnifiedDiffusionModel.from_pretrained(args.checkpoint)
rows = []
for part in args.parts:
    weight = model.get_submodule(f"shared_transformer.layers.{args.layer}.{part}").weight.detach().float()
    packed, scale, table = learn_table(weight, args.group_size)
    fixed, int4 = (dequantize(*quantize(weight, bits, args.group_size), bits) for bits in (2, 4))
    learned = dequantize(packed, scale, 2, table=table)
    bits = 2 + 16 / args.group_size
    rows.append(
        {
            "matrix": part,
            "weights": weight.numel(),
            "fixed table": ((fixed - weight).norm() / weight.norm()).item(),
            "learned table": ((learned - weight).norm() / weight.norm()).item(),
            "INT4": ((int4 - weight).norm() / weight.norm()).item(),
            "bits, fixed": bits,
            "bits, learned": bits + 16 * table.numel() / weight.numel(),
        }
    )
report(
    "learned_table",
    {"rms error / rms of the weights": rows},
    shown,
    [__doc__.rpartition("\n\n")[2].strip()],
    args.output,
)
