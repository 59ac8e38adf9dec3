"""ControlNets: nothing at first, a weighted sum when several, causal with their context, and refused by other bases."""

import pytest
import torch
from torch import Generator
from transformers import AutoModel

from hf_unified_diffusion import ArrowQuantConfig, Control, Segment, UnifiedControlNetModel, UnifiedDiffusionModel
from hf_unified_diffusion.modeling.configuration_controlnet import base_architecture
from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.embedded import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import num_weights, quantize_model
from tests.modeling.tiny import assert_same, canvas, noised, open_model, random_ids

T = torch.full((2,), 0.5, dtype=torch.float64)


@pytest.fixture(scope="module")
def base() -> UnifiedDiffusionModel:
    return open_model(num_hidden_layers=4).double().requires_grad_(False)


def fresh(base: UnifiedDiffusionModel, **sizes) -> UnifiedControlNetModel:
    torch.manual_seed(0)
    return UnifiedControlNetModel.from_transformer(base, num_blocks=2, **sizes).to(base.dtype).eval()


def trained(base: UnifiedDiffusionModel, seed: int = 1, **sizes) -> UnifiedControlNetModel:
    """As after training: every parameter is moved."""
    controlnet, generator = fresh(base, **sizes), Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return controlnet.requires_grad_(False)


def control_of(base, controlnet, hint=None, **settings) -> Control:
    hint = Segment("text", random_ids(2, 4, seed=5)) if hint is None else hint
    return Control(controlnet, controlnet.read(base, hint), **settings)


def segments(seed: int = 0) -> list[Segment]:
    return [Segment("text", random_ids(2, 5, seed)), canvas(noised(random_ids(2, 6, seed + 1)), T)]


@pytest.mark.parametrize("sizes", [{}, {"hint_width": 3}])
def test_a_fresh_one_changes_nothing_bit_for_bit(base, sizes):
    values = torch.randn(2, 4, 3, generator=Generator().manual_seed(0)).double()
    hint = Segment("edges", values) if sizes else None
    plain = base(segments=segments()).predictions
    controlled = base(segments=segments(), controls=[control_of(base, fresh(base, **sizes), hint)]).predictions
    assert all(torch.equal(*pair) for pair in zip(plain, controlled, strict=True))


def added(base, *controls: Control) -> torch.Tensor:
    """What ControlNets that only write after the last layer add to the normalized hidden states' inputs."""
    found = []
    handle = base.shared_transformer.norm.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    base(segments=segments())
    base(segments=segments(), controls=list(controls))
    handle.remove()
    return found[1] - found[0]


def test_two_at_weights_equal_the_weighted_sum_of_their_residuals(base):
    first, second = (
        UnifiedControlNetModel.from_transformer(base, num_blocks=1, read_layer=2).to(base.dtype).requires_grad_(False)
        for _ in range(2)
    )
    for number, controlnet in enumerate((first, second)):
        assert list(controlnet.config.write_layers) == [4]
        controlnet.residuals[0].weight.normal_(generator=Generator().manual_seed(number))
    alone = [added(base, control_of(base, controlnet)) for controlnet in (first, second)]
    both = added(base, control_of(base, first, scale=0.7), control_of(base, second, scale=-1.5))
    assert float(both.abs().max()) > 0.1
    torch.testing.assert_close(both, 0.7 * alone[0] - 1.5 * alone[1], atol=1e-6, rtol=1e-5)


def test_the_same_twice_at_half_weight_is_once_at_every_depth(base):
    controlnet = trained(base)
    once = base(segments=segments(), controls=[control_of(base, controlnet)]).predictions[1]
    halves = [control_of(base, controlnet, scale=0.5) for _ in range(2)]
    assert_same(base(segments=segments(), controls=halves).predictions[1], once)
    assert not torch.allclose(base(segments=segments()).predictions[1][..., :-1], once[..., :-1])


@pytest.mark.parametrize("padded", [False, True])
def test_with_the_cache_or_without(base, padded):
    """Context in two parts through the caches, then the canvas; the hint padded or not."""
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2]) if padded else None
    hint, controlnet = Segment("text", random_ids(2, 4, seed=5), mask=mask), trained(base)
    context, noisy = segments()
    whole = base(segments=[context, noisy], controls=[control_of(base, controlnet, hint)]).predictions
    control = control_of(base, controlnet, hint)
    parts = [context.values[:, :3], context.values[:, 3:]]
    output = base(segments=[Segment("text", parts[0])], use_cache=True, controls=[control])
    assert_same(output.logits, whole[0][:, :3])
    again = base(
        segments=[Segment("text", parts[1]), noisy], cache=output.cache, use_cache=True, controls=[control]
    ).predictions
    assert_same(again[0], whole[0][:, 3:])
    for _ in range(2):  # a canvas leaves the caches as they were
        assert_same(base(segments=[noisy], cache=output.cache, controls=[control]).predictions[0], whole[1])


def test_a_row_does_not_depend_on_its_batch_or_padding(base):
    controlnet, ids = trained(base), random_ids(2, 4, seed=5)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    both = base(segments=segments(), controls=[control_of(base, controlnet, Segment("text", ids, mask=mask))])
    context, noisy = segments()
    alone = [Segment("text", context.values[1:]), canvas(noisy.values[1:], T[1:])]
    control = control_of(base, controlnet, Segment("text", ids[1:, :2]))
    for found, expected in zip(both.predictions, base(segments=alone, controls=[control]).predictions, strict=True):
        assert_same(found[1:], expected)


def test_the_context_stays_causal(base):
    controlnet, ids = trained(base), random_ids(2, 6)
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 40
    before, after = (base(x, controls=[control_of(base, controlnet)]).logits for x in (ids, changed))
    assert_same(after[:, :4], before[:, :4])


def test_the_time_range_is_a_matter_of_each_tokens_time(base):
    control = control_of(base, trained(base), start=0.25, end=0.75, scale=2.0)
    weights = control.weights(torch.tensor([[1.0, 0.75, 0.5, 0.26, 0.25, 0.0]]))
    assert weights.tolist() == [[0.0, 2.0, 2.0, 2.0, 0.0, 0.0]]
    assert control_of(base, trained(base)).weights(torch.tensor([[1.0, 0.5, 0.0]])).tolist() == [[1.0, 1.0, 1.0]]
    plain, early = base(segments=segments()).predictions, control_of(base, trained(base), end=0.4)
    controlled = base(segments=segments(), controls=[early]).predictions  # at t=0.5 it has ended
    assert all(torch.equal(*pair) for pair in zip(plain, controlled, strict=True))


def test_a_continuous_hint_that_lies_upon_the_canvas(base):
    """F0 and energy of each frame: a change of the hint changes the prediction."""
    controlnet, generator = trained(base, hint_width=2), Generator().manual_seed(0)
    frames = Segment("audio", torch.randn(2, 5, 6, generator=generator).double(), time=T)
    curves = torch.randn(2, 5, 2, generator=generator).double()
    places = torch.arange(5.0).expand(2, 5)
    found = [
        base(
            segments=[frames], controls=[control_of(base, controlnet, Segment("f0", values, positions=places))]
        ).predictions[0]
        for values in (curves, curves.flip(1))
    ]
    assert not torch.allclose(*found)


def test_training_leaves_the_base_alone_and_trains_all_the_rest(base):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    controlnet = fresh(base)
    with torch.no_grad():
        for residual in controlnet.residuals:  # with zeros nothing behind them has a gradient yet
            residual.weight.normal_(0, 0.1, generator=Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-2)
    base(segments=segments(), controls=[control_of(base, controlnet)]).predictions[1][
        ..., :-1
    ].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in controlnet.parameters())
    optimizer.step()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize("weights_format", ["safetensors", "parquet"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_saved_and_loaded(base, tmp_path, weights_format, bits):
    controlnet = trained(base).float()
    if bits is not None:
        quantize_model(controlnet, ArrowQuantConfig(bits, 32, int8_modules=[], modules_to_not_convert=[]))
    controlnet.save_pretrained(tmp_path, weights_format=weights_format)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is UnifiedControlNetModel
    outputs = [base(segments=segments(), controls=[control_of(base, one)]).logits for one in (controlnet, loaded)]
    assert torch.equal(*outputs)


def test_under_a_tenth_of_the_embedded_checkpoint():
    with torch.device("meta"):
        model = UnifiedDiffusionModel(UnifiedDiffusionConfig.from_pretrained(EMBEDDED_CHECKPOINT))
        config = UnifiedControlNetModel.config_class(base=base_of(model))
        controlnet = UnifiedControlNetModel(config)
    share = num_weights(controlnet) / num_weights(model)
    print(f"{num_weights(controlnet):,} parameters, {share:.1%} of the base")
    assert 0.02 < share < 0.1


def base_of(model: UnifiedDiffusionModel) -> dict:
    return base_architecture(model.config)


def test_what_is_refused(base):
    controlnet, other = fresh(base), open_model(num_hidden_layers=4, intermediate_size=64).double()
    hint = Segment("text", random_ids(2, 4))
    with pytest.raises(ValueError, match=r"base it was made for.*intermediate_size': \(48, 64\)"):
        controlnet.read(other, hint)
    with pytest.raises(ValueError, match="base it was made for"):
        other(segments=segments(), controls=[control_of(base, controlnet)])
    with pytest.raises(ValueError, match="batch's 2 rows, got 3"):
        base(segments=segments(), controls=[control_of(base, controlnet, Segment("text", random_ids(3, 4)))])
    with pytest.raises(ValueError, match="must be 'text', got 'code'"):
        controlnet.read(base, Segment("code", random_ids(2, 4)))
    with pytest.raises(ValueError, match="must be clean"):
        controlnet.read(base, canvas(random_ids(2, 4)))
    with pytest.raises(ValueError, match="at most 3 tokens, got 4"):
        fresh(base, max_hint_tokens=3).read(base, hint)
    with pytest.raises(ValueError, match=r"float \(batch, length, 3\), got .*\(2, 4, 5\)"):
        fresh(base, hint_width=3).read(base, Segment("edges", torch.zeros(2, 4, 5)))
    with pytest.raises(ValueError, match="edges values must be finite"):
        fresh(base, hint_width=3).read(base, Segment("edges", torch.full((2, 4, 3), torch.nan)))
    with pytest.raises(ValueError, match="either hint_modality or hint_width"):
        fresh(base, hint_width=3, hint_modality="text")
    with pytest.raises(ValueError, match="num_blocks must be in"):
        UnifiedControlNetModel.from_transformer(base, num_blocks=3)
    low = UnifiedControlNetModel.from_transformer(base, num_blocks=1, read_layer=3).double()
    writes_below = UnifiedControlNetModel.from_transformer(base, num_blocks=4, read_layer=0).double()
    with pytest.raises(ValueError, match="must all read at or below"):
        base(segments=segments(), controls=[control_of(base, low), control_of(base, writes_below)])
