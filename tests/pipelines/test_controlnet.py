"""ControlNets in a pipeline: nothing at first, with drafts checked, blocks, guidance, schemas, and batches."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Generator

from hf_unified_diffusion import ArrowEngine, Segment, UnifiedControlNetModel
from hf_unified_diffusion.conditioning.control import controlled
from hf_unified_diffusion.conditioning.tool_hints import describe_tools
from hf_unified_diffusion.pipelines.context_denoiser import ContextDenoiser
from hf_unified_diffusion.pipelines.pipeline_text import UnifiedDiffusionTextPipeline
from hf_unified_diffusion.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

PROMPTS = ["One two", "A longer beginning of it"]
WAYS = {
    "blocks": {"block_length": 4},
    "checked drafts": {"block_length": 4, "check_drafts": True},
    "infilling": {"suffix": " the end"},
    "guidance": {"block_length": 4, "guidance_scale": 2.0},
    "a schema": {"block_length": 4, "regex": "(yes|no|perhaps)( indeed)?"},
}


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    pipe = UnifiedDiffusionTextPipeline(
        model, MaskedDiffusionScheduler(mask_token_id=tokenizer.mask_token_id), tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fresh(model):
    torch.manual_seed(0)
    return UnifiedControlNetModel.from_transformer(model, num_blocks=1).double().eval()


@pytest.fixture(scope="module")
def controlnet(model):
    """As after training."""
    controlnet, generator = fresh(model), Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return controlnet


def write(pipe, prompt, way, **options):
    return pipe(prompt, max_new_tokens=12, num_inference_steps=6, seed=3, **WAYS[way], **options).completions


@pytest.mark.parametrize("way", WAYS)
def test_a_fresh_one_changes_no_token(pipe, model, way):
    plain = write(pipe, PROMPTS, way)
    assert write(pipe, PROMPTS, way, controlnet=fresh(model), control_hint=["hint", "another hint"]) == plain


@pytest.mark.parametrize("way", [way for way in WAYS if way != "a schema"])
def test_a_trained_one_changes_the_text_and_rows_stay_their_own(pipe, controlnet, way):
    hints = ["hint", "another, longer hint"]
    both = write(pipe, PROMPTS, way, controlnet=controlnet, control_hint=hints)
    assert both != write(pipe, PROMPTS, way)
    assert both[0] == write(pipe, PROMPTS[0], way, controlnet=controlnet, control_hint=hints[0])[0]
    assert write(pipe, PROMPTS, way, controlnet=controlnet, control_hint="other") != both
    assert write(pipe, PROMPTS, way, controlnet=controlnet, control_hint=hints, controlnet_conditioning_scale=0.0) == (
        write(pipe, PROMPTS, way)
    )


def test_two_halves_are_one(pipe, controlnet):
    once = write(pipe, PROMPTS, "blocks", controlnet=controlnet, control_hint="hint")
    halves = {"controlnet_conditioning_scale": [0.5, 0.5], "control_guidance_end": [1.0, 1.0]}
    assert write(pipe, PROMPTS, "blocks", controlnet=[controlnet] * 2, control_hint=["hint", "hint"], **halves) == once


@torch.no_grad()
def test_drafts_taken_back_leave_no_trace(model, controlnet):
    """Reading a draft and forgetting part of it is as never having read that part, in ragged rows too."""
    ids = torch.randint(1, 300, (2, 9), generator=Generator().manual_seed(1))
    mask = torch.tensor([[True] * 3, [True, True, False]])
    hint = Segment("text", ids[:, :3], mask=mask)

    def begun() -> ContextDenoiser:
        plain = ContextDenoiser(model, "text", model.config.mask_token_id)
        denoiser = controlled(plain, controlnet, hint)
        denoiser.remember(ids[:, :3], mask)
        return denoiser

    denoiser = begun()
    denoiser.read(ids[:, :3], mask)
    denoiser.read(ids[:, 3:7])
    denoiser.forget(torch.tensor([3, 1]))
    found = denoiser.read(ids[:, 7:])
    for row, (real, kept) in enumerate([(3, 1), (2, 3)]):
        alone = controlled(
            ContextDenoiser(model, "text", model.config.mask_token_id),
            controlnet,
            Segment("text", ids[row : row + 1, :real]),
        )
        alone.read(torch.cat([ids[row : row + 1, :real], ids[row : row + 1, 3 : 3 + kept]], dim=1))
        torch.testing.assert_close(found[row], alone.read(ids[row : row + 1, 7:])[0])


def test_the_engine_passes_it_on(model, tokenizer, pipe, controlnet):
    engine = ArrowEngine(model, pipe.scheduler, tokenizer)
    options = {"controlnet": controlnet, "control_hint": "hint", "num_steps": 6, "max_new_tokens": 12, "seed": 3}
    text = engine.diffuse(PROMPTS[0], check_drafts=False, block_length=4, **options)
    engine.close()
    assert text == PROMPTS[0] + write(pipe, PROMPTS[0], "blocks", controlnet=controlnet, control_hint="hint")[0]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"controlnet": None, "control_hint": "x"}, "without a controlnet"),
        ({"control_hint": ""}, "must hold at least one|must not hold an empty string"),
        ({"control_hint": None}, "must be given for this controlnet"),
        ({"control_hint": ["a", "b", "c"]}, "as many as the prompts"),
        ({"controlnet_conditioning_scale": float("nan")}, "finite number"),
        ({"controlnet_conditioning_scale": [1.0, 2.0]}, "one number or as many as the controlnets"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "control_guidance_start < control_guidance_end"),
        ({"control_guidance_end": 1.5}, "<= 1 must hold"),
        ({"controlnet": "name"}, "must be a UnifiedControlNetModel"),
    ],
)
def test_what_is_refused(pipe, controlnet, options, rule):
    with pytest.raises(ValueError, match=rule):
        write(pipe, PROMPTS, "blocks", **{"controlnet": controlnet, "control_hint": "hint", **options})


TOOLS = [{"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}}]


def of_source(model, source):
    controlnet = fresh(model)
    controlnet.config.hint_source = source
    with torch.no_grad():
        for residual in controlnet.residuals:
            residual.weight.normal_(0, 0.5, generator=Generator().manual_seed(2))
    return controlnet


def test_a_hint_that_is_left_out_is_the_prompt_or_the_tools(pipe, model):
    by_prompt, by_tools = of_source(model, "prompt"), of_source(model, "tools")
    told = write(pipe, PROMPTS, "blocks", controlnet=by_prompt, control_hint=PROMPTS)
    assert write(pipe, PROMPTS, "blocks", controlnet=by_prompt) == told != write(pipe, PROMPTS, "blocks")
    options = {"max_new_tokens": 48, "num_inference_steps": 6, "seed": 3, "tools": TOOLS}
    both = pipe(PROMPTS, controlnet=[by_prompt, by_tools], control_hint=[PROMPTS, describe_tools(TOOLS)], **options)
    for hints in (None, [None, None], [None, describe_tools(TOOLS)]):
        found = pipe(PROMPTS, controlnet=[by_prompt, by_tools], control_hint=hints, **options)
        assert found.completions == both.completions


def test_a_hint_that_cannot_be_found_is_refused(pipe, model):
    for source, rule in ((None, "for this controlnet"), ("tools", "no tools to read")):
        with pytest.raises(ValueError, match=rule):
            write(pipe, PROMPTS, "blocks", controlnet=of_source(model, source))
    with pytest.raises(ValueError, match="no prompt to read"):
        write(pipe, None, "blocks", controlnet=of_source(model, "prompt"))
    with pytest.raises(StrictDataclassError, match="hint_source must be one of"):
        UnifiedControlNetModel.from_transformer(model, num_blocks=1, hint_source="weather")


def test_an_engine_knows_the_controlnets_of_its_checkpoint_by_name(pipe, model, tmp_path):
    model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    of_source(model, "prompt").save_pretrained(tmp_path / "controlnets" / "mine")
    engine = ArrowEngine.from_pretrained(tmp_path, dtype=torch.float64)
    options = {"max_new_tokens": 12, "num_steps": 6, "block_length": 4, "check_drafts": False, "seed": 3}
    assert engine.controlnets.names == ["mine"]
    named = engine.diffuse("One two", controlnet="mine", **options)
    assert named == engine.diffuse("One two", controlnet=[engine.controlnets["mine"]], **options)
    assert named != engine.diffuse("One two", **options)
    with pytest.raises(ValueError, match=r"comes with the checkpoint, \['mine'\], got 'other'"):
        engine.diffuse("One two", controlnet="other", **options)
    engine.close()


def test_tools_as_a_hint():
    def get_weather(city: str, days: int):
        """
        Say the weather.

        Args:
            city: where
            days: how many
        """

    unit = {
        "name": "f",
        "parameters": {"properties": {"unit": {"enum": ["C", "F"]}, "x": {"type": ["string", "null"]}}},
    }
    expected = "get_weather(city: string, days: integer) Say the weather.\nf(unit: C|F, x: string|null)"
    assert describe_tools([get_weather, {"type": "function", "function": unit}]) == expected
    with pytest.raises(ValueError, match="at least one tool"):
        describe_tools([])
