"""What the engine generates, on the command line: the engine's own outputs, by pipes, files and JSON."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from hf_unified_diffusion import ArrowEngine, AvatarTrack
from hf_unified_diffusion.cli import main
from tests.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def engine(checkpoint):
    engine = ArrowEngine.from_pretrained(checkpoint)
    yield engine
    engine.close()


@pytest.fixture
def run(checkpoint, capsys, monkeypatch):
    def command(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        main([*arguments, "--checkpoint", checkpoint])
        return capsys.readouterr().out

    return command


SHORT = ("--max-new-tokens", "6", "--seed", "1")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        (("--num-steps", "6"), {"num_steps": 6}),
        (("--temperature", "0", "--guidance-scale", "2"), {"temperature": 0, "guidance_scale": 2.0}),
        (("--modality", "code", "--top-k", "3", "--top-p", "0.5"), {"modality": "code", "top_k": 3, "top_p": 0.5}),
        (("--stop", "e", "--stop", "a"), {"stop": ["e", "a"]}),
    ],
)
def test_generate_gives_the_engines_text_with_the_same_defaults(run, engine, arguments, options):
    assert run("generate", "ab", *SHORT, *arguments) == engine.diffuse("ab", max_new_tokens=6, seed=1, **options) + "\n"


def test_what_is_piped_in_is_the_prompt_and_json_reproduces(run):
    told = json.loads(run("generate", "--json", "--max-new-tokens", "6", stdin="two\nlines\n"))
    assert told["text"].startswith("two\nlines") and told["passes"] > 0
    again = json.loads(
        run("generate", "--json", "--max-new-tokens", "6", "--seed", str(told["seed"]), stdin="two\nlines")
    )
    assert again == told


def test_a_file_gets_the_text_and_standard_output_nothing(run, tmp_path):
    text = run("generate", "ab", *SHORT)
    assert run("generate", "ab", *SHORT, "-o", str(tmp_path / "out.txt")) == ""
    assert (tmp_path / "out.txt").read_text() == text


def test_a_schema_is_kept_to(run, tmp_path):
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    text = run("generate", "ab", "--max-new-tokens", "8", "--seed", "0", "--json-schema", str(tmp_path / "schema.json"))
    assert json.loads(text.removeprefix("ab")) in ("yes", "no")


@pytest.mark.parametrize(("text", "before", "after"), [("ab ____ yz", "ab ", " yz"), ("____ yz", None, " yz")])
def test_infill_writes_where_the_mark_is(run, engine, text, before, after):
    assert run("infill", *SHORT, stdin=text) == engine.diffuse(before, suffix=after, max_new_tokens=6, seed=1) + "\n"


def test_speak_writes_a_sound_file_and_tells_the_words(run, engine, tmp_path):
    path = tmp_path / "hello.wav"
    arguments = ("--num-steps", "2", "--speed", "2", "--seed", "1", "--json", "-o", str(path))
    told = json.loads(run("speak", "Two fish.", *arguments))
    samples, rate = soundfile.read(path)
    expected = engine.diffuse("Two fish.", "audio", num_steps=2, speed=2.0, seed=1)
    assert rate == 24_000 and len(samples) == len(expected) and abs(samples - expected).max() < 1 / 32_000
    assert [word["label"] for word in told["words"]] == ["Two", "fish"] and told["seconds"] == len(samples) / rate


def test_speak_writes_the_face_too(run, engine, tmp_path):
    sound, mouth, face = (str(tmp_path / name) for name in ("hello.wav", "mouth.json", "face.gif"))
    files = ("-o", sound, "--avatar", mouth, "--face", face, "--fps", "60")
    told = json.loads(run("speak", "My map.", "--num-steps", "2", "--seed", "1", "--json", *files))
    expected = engine.diffuse("My map.", ["audio", "avatar"], num_steps=2, seed=1)
    samples, rate = soundfile.read(sound)
    assert len(samples) == len(expected["audio"]) and told["avatar"] == mouth and told["face"] == face
    track = AvatarTrack.read(mouth)
    assert track.frame_rate_hz == 60 and len(track) == 3 * len(expected["avatar"]) == len(samples) / rate * 60
    assert abs(track.at(20).coefficients - expected["avatar"]).max() < 1e-3
    assert [word.label for word in track.words] == ["My", "map"] and track.visemes
    with Image.open(face) as moving:
        assert moving.format == "GIF" and moving.size == (200, 200)


def test_draw_writes_what_the_engine_draws_with_its_own_memory_or_without(capsys, tmp_path):
    """With the embedded checkpoint, whose memory has a red apple."""
    path = tmp_path / "apple.png"
    engine = ArrowEngine.from_pretrained()
    passes = []
    for flags, options in ((), {}), (("--no-own-memory",), {"own_memory": False}):
        main(["draw", "a red apple", "-o", str(path), "--num-steps", "2", "--seed", "1", "--json", *flags])
        told = json.loads(capsys.readouterr().out)
        expected = engine.diffuse("a red apple", modality="image", num_steps=2, seed=1, **options)
        with Image.open(path) as drawn:
            assert (np.array(drawn) == expected).all() and told["file"] == str(path)
        passes.append(told["passes"])
    engine.close()
    assert passes[0] < passes[1] == 4


def test_bench_tells_what_it_timed(run):
    told = json.loads(run("bench", "--json", "--repeats", "1", "--max-new-tokens", "4"))
    assert 0 < told["tokens"] <= 4 and told["text_s"] > 0 and told["tokens_per_s"] > 0 and told["passes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "text must be given as an argument or on standard input"),
        (("generate", "ab", "--max-new-tokens", "0"), "max_new_tokens must be an integer of at least 1, got 0"),
        (("generate", "ab", "--mode", "ar"), "mode 'ar' needs an ar_model"),
        (("generate", "ab", "--mode", "ar", "--num-steps", "3"), "num_steps must be left out with --mode ar"),
        (("generate", "ab", "--memory-strength", "1"), "need --memory"),
        (("generate", "ab", "--memory", "/nowhere"), "memory must be a folder"),
        (("draw", "a cat", "-o", "cat.png", "--namespace", "anna"), "need --memory"),
        (("infill", "no gap"), "must hold the mark '____' once, got 0"),
        (("infill", "____ ____"), "got 2"),
        (("draw", "a cat", "-o", "cat.png"), "modality 'image' needs an autoencoder"),
        (("speak", "你好", "-o", "hello.wav"), "text to speak must be in Latin letters"),
        (("speak", "hello", "-o", "hello.wav", "--reference-audio", "no.wav"), "no.wav"),
        (("speak", "hello", "-o", "hello.wav", "--speed", "0"), "speed must be a number in [0.25, 4.0], got 0.0"),
        (
            ("speak", "hello", "-o", "hello.wav", "--avatar", "mouth.json", "--speed", "2"),
            "speed must be left out with --avatar and --face",
        ),
        (("bench", "--repeats", "0"), "repeats must be at least 1"),
    ],
)
def test_wrong_arguments_end_with_2_and_say_why(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_what_stands_in_the_way_ends_with_1(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        run("generate", "ab", *SHORT, "-o", str(tmp_path / "missing" / "out.txt"))
    assert end.value.code == 1
    assert "No such file" in capsys.readouterr().err


def test_starting_the_script_loads_no_memory():
    """FAISS and datasets take seconds."""
    program = "import sys, hf_unified_diffusion.cli; print({'datasets', 'faiss'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
