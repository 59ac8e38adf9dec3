"""What `hf-unified-diffusion demo` draws and speaks: files, each from its fixed seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from diffusers.utils import make_image_grid

from .codecs.avatar_track import AvatarTrack
from .codecs.avatar_view import write_gif
from .media_files import wav_bytes
from .modeling.checkpoint_metadata import limits_of
from .pipelines.pipeline_image import UnifiedDiffusionImagePipeline
from .pipelines.pipeline_joint import UnifiedDiffusionJointPipeline
from .pipelines.pipeline_speech import UnifiedDiffusionSpeechPipeline

CAPTIONS = (
    "a red apple",
    "a yellow sun",
    "a green tree",
    "a blue car",
    "a red heart",
    "a house",
    "a fish",
    "a cat face",
    "a smiling face",
    "a flower",
    "a star",
    "a key",
    "a clock",
    "an umbrella",
    "a blue circle",
    "a red square on the left",
)
RECOLOURED = ("a purple fish", "a blue tree", "a green cat face", "a pink house")  # few remembered in these colours
HELLO = "Hello. I write, I draw, and I speak, all with one network."
CLONED = "This is the same voice, and it says something else."
TOGETHER = "My mouth moves with every word."
COLUMNS = 4

Shown = tuple[str, list[Path]]


def draw_pictures(folder: str, output: Path) -> Shown:
    """A contact sheet of the captions, and one of things in colours that they are hardly remembered in."""
    pipe = UnifiedDiffusionImagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    sheets = [output / "pictures.png", output / "recoloured.png"]
    for captions, sheet in zip((CAPTIONS, RECOLOURED), sheets, strict=True):
        # one by one: in a batch the network is asked for all as soon as one of them needs it
        pictures = [pipe(caption, seed=seed).images[0] for seed, caption in enumerate(captions)]
        make_image_grid(pictures, rows=len(captions) // COLUMNS, cols=COLUMNS).save(sheet)
    return f"{len(CAPTIONS) + len(RECOLOURED)} pictures: {', '.join(CAPTIONS + RECOLOURED)}", sheets


def speak_twice(folder: str, output: Path) -> Shown:
    """A sentence in any voice, and another in the voice of the first."""
    pipe = UnifiedDiffusionSpeechPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    said = pipe(HELLO, seed=0)
    first, second = output / "hello.wav", output / "cloned.wav"
    first.write_bytes(wav_bytes(said.audios[0], said.sampling_rate_hz))
    again = pipe(CLONED, reference_audio=str(first), seed=0)
    second.write_bytes(wav_bytes(again.audios[0], again.sampling_rate_hz))
    return f"speech, and a voice cloned from it: {HELLO!r}, {CLONED!r}", [first, second]


def speak_with_face(folder: str, output: Path) -> Shown:
    """A sentence and the face that says it, from one pass a step."""
    pipe = UnifiedDiffusionJointPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(modality=["audio", "avatar"], text=TOGETHER, guidance_scale=2.0, seed=0)
    sound, track, face = (output / name for name in ("together.wav", "mouth.json", "face.gif"))
    sound.write_bytes(wav_bytes(made.audio[0], made.sampling_rate_hz))
    mouth = AvatarTrack(made.avatar[0], made.avatar_rate_hz, made.words[0], made.phonemes[0], made.visemes[0])
    mouth.write(track)
    write_gif(mouth, face)
    return f"sound and face together: {TOGETHER!r}", [sound, track, face]


MEDIA: list[tuple[set[str], str, Callable[[str, Path], Shown]]] = [  # modalities, the codec's folder, what makes them
    ({"image"}, "vae", draw_pictures),
    ({"audio"}, "vocoder", speak_twice),
    ({"audio", "avatar"}, "vocoder", speak_with_face),
]


def show_media(folder: str, facts: Mapping[str, Any], output: Path) -> None:
    """Make what a checkpoint can, and print what it is, where, how long it took, and what is bad about it.

    Args:
        facts: of its metadata: `supported_modalities`, none by default, and `limits`.

    Usage: `show_media("checkpoint", model.checkpoint_facts, Path("out/demo"))`
    """
    modalities = facts.get("supported_modalities", ())
    for needed, codec, make in MEDIA:
        if not needed <= set(modalities) or not (Path(folder) / codec).is_dir():
            continue
        output.mkdir(parents=True, exist_ok=True)
        start = perf_counter()
        title, files = make(folder, output)
        print(f"== {title}: {perf_counter() - start:.1f} s", *map(str, files), sep="\n")
        print(*(f"({limit})" for limit in limits_of(facts, sorted(needed))), sep="\n", end="\n\n")
