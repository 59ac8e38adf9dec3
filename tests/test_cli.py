"""The console script on a tiny real checkpoint."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModel

from hf_unified_diffusion import UnifiedControlNetModel, UnifiedDiffusionModel
from hf_unified_diffusion.cli import evaluate, main, parse_bytes
from hf_unified_diffusion.cli_demo import STORIES
from hf_unified_diffusion.pipelines.checkpoints import EMBEDDED_CHECKPOINT
from hf_unified_diffusion.quantization import QuantizedWeight, bits_per_weight
from tests.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    model = UnifiedDiffusionModel.from_pretrained(folder)
    for name, source in (("tools", "tools"), ("reasoning", "prompt")):
        controlnet = UnifiedControlNetModel.from_transformer(model, hint_source=source, num_blocks=1)
        controlnet.save_pretrained(Path(folder) / "controlnets" / name)
    return folder


def test_demo_keeps_what_it_was_given(folder, capsys):
    main(["demo", str(folder)])
    printed = capsys.readouterr().out
    for title, (_, request) in STORIES.items():
        story = printed[printed.index(f"== {title}:") :]
        assert request["prompt"] in story
        assert request.get("suffix", "") in story


def test_demo_is_reproducible(folder, capsys):
    texts = []
    for _ in range(2):
        main(["demo", str(folder)])
        texts.append(re.sub(r"[0-9.]+ s$", "", capsys.readouterr().out, flags=re.MULTILINE))
    assert texts[0] == texts[1]


def test_info_agrees_with_the_checkpoint(folder, capsys):
    main(["info", str(folder)])
    printed = dict(re.findall(r"^(\S.*?)  +(\S.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    model = UnifiedDiffusionModel.from_pretrained(folder)
    assert printed["parameters"] == f"{model.num_parameters() / 1e6:.1f} M"
    assert printed["in the trunk"] == f"{model.trunk_share():.1%}"
    assert 32 <= float(printed["bits per weight"]) < 40  # float32 and the file's header
    assert printed["vocabulary"] == f"{model.config.vocab_size} tokens"


@pytest.mark.parametrize("part", ["vocoder", "controlnets/tools"])
def test_info_reads_every_network_of_the_package(part, capsys):
    main(["info", str(EMBEDDED_CHECKPOINT / part)])
    printed = dict(re.findall(r"^(\S.*?)  +(\S.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    model = AutoModel.from_pretrained(EMBEDDED_CHECKPOINT / part)
    assert printed["network"] == type(model).__name__ and "in the trunk" not in printed
    assert float(printed["bits per weight"]) == pytest.approx(bits_per_weight(model), rel=0.05)  # the file's header


@pytest.mark.parametrize("arguments", [["info", "/nowhere"], ["unknown"], []])
def test_wrong_arguments_end_with_a_message(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: hf-unified-diffusion" in capsys.readouterr().err


def test_plan_prints_what_fits(capsys):
    main(["plan", "--memory", "2GB", "--modalities", "text", "audio"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2.00 GB for one process")
    assert [line.split()[0] for line in lines[2:5]] == ["edge", "workstation", "cloud"]
    assert lines[4].endswith("does not fit") and lines[5].startswith("take edge at 8 bits")
    main(["plan", "--memory", "100 MB"])
    assert "nothing fits: the smallest, edge, needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2_000_000_000), ("1.5 MiB", 1_572_864), ("7", 7), ("512mb", 512_000_000), ("3 k", 3000)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 XB", "nan", "1e9", "2GBGB"])
def test_what_is_no_size_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["plan", f"--memory={text}"])
    assert "memory must be a number with B, KB" in capsys.readouterr().err


def test_convert_writes_its_report(folder, tmp_path, capsys):
    report = tmp_path / "report.json"
    main(["convert", str(folder), str(tmp_path / "out"), "--bits", "8", "--report", str(report)])
    told, printed = json.loads(report.read_text()), capsys.readouterr().out
    model = UnifiedDiffusionModel.from_pretrained(tmp_path / "out")
    assert f"bits per weight     {told['bits_per_weight']:.2f}" in printed
    assert told["bytes_after"] == (tmp_path / "out" / "model.arrowquant.parquet").stat().st_size
    assert told["errors"].keys() == {n for n, m in model.named_modules() if isinstance(m, QuantizedWeight)}
    with pytest.raises(SystemExit):
        main(["convert", str(folder), str(tmp_path / "out")])
    assert "destination must not exist yet" in capsys.readouterr().err


def test_eval_gives_its_arguments_and_its_exit_code_to_the_script(tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("import pathlib, sys\npathlib.Path(__file__).with_name('given').write_text(repr(sys.argv[1:]))\n")
    assert evaluate(["--quick", "--only", "schema"], script) == 0
    assert (tmp_path / "given").read_text() == "['--quick', '--only', 'schema']"
    script.write_text("raise SystemExit(1)")
    assert evaluate([], script) == 1


def test_eval_without_a_checkout_says_what_it_needs(tmp_path, capsys):
    assert evaluate([], tmp_path / "evaluate.py") == 1
    assert "needs a checkout" in capsys.readouterr().err


def test_only_eval_takes_unknown_arguments(folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["info", str(folder), "--quick"])
    assert end.value.code == 2
    assert "unrecognized arguments: --quick" in capsys.readouterr().err
