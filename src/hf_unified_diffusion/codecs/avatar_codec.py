"""The face in time: 52 ARKit coefficients in [0, 1], and the numbers that the network works with."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

# ARKit's blend shape locations in the order of Apple's documentation: eyes, jaw and mouth, brows, cheeks, nose, tongue
_EYE = ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")
_PAIRED = ("Smile", "Frown", "Dimple", "Stretch")
_LATE_PAIRS = ("mouthPress", "mouthLowerDown", "mouthUpperUp", "browDown")
COEFFICIENTS: tuple[str, ...] = (
    *(f"eye{move}{side}" for side in ("Left", "Right") for move in _EYE),
    *("jawForward", "jawLeft", "jawRight", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight"),
    *(f"mouth{move}{side}" for move in _PAIRED for side in ("Left", "Right")),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *(f"{move}{side}" for move in _LATE_PAIRS for side in ("Left", "Right")),
    *("browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight"),
    *("noseSneerLeft", "noseSneerRight", "tongueOut"),
)
TOKENS_PER_SECOND = 20
SMALLEST_DEVIATION = 0.05  # of coefficients that hardly move, so that their noise stays noise

# mean and standard deviation over 47 minutes of speaking faces (`training.avatar_targets`), of pairs by their stem;
# those left out are 0 and the smallest
MOMENTS: dict[str, tuple[float, float]] = {
    "eyeBlink": (0.03, 0.15),
    "eyeLookDown": (0.025, 0.05),
    "eyeLookIn": (0.04, 0.06),
    "eyeLookOut": (0.04, 0.06),
    "eyeLookUp": (0.025, 0.05),
    "jawOpen": (0.22, 0.14),
    "mouthClose": (0.01, 0.05),
    "mouthFunnel": (0.055, 0.13),
    "mouthPucker": (0.05, 0.13),
    "mouthSmile": (0.075, 0.11),
    "mouthDimple": (0.015, 0.05),
    "mouthStretch": (0.12, 0.105),
    "mouthRollLower": (0.045, 0.11),
    "mouthRollUpper": (0.025, 0.075),
    "mouthShrugLower": (0.005, 0.05),
    "mouthPress": (0.045, 0.12),
    "mouthLowerDown": (0.16, 0.1),
    "mouthUpperUp": (0.07, 0.07),
    "browDown": (0.03, 0.05),
    "browInnerUp": (0.05, 0.07),
    "browOuterUp": (0.05, 0.07),
    "tongueOut": (0.005, 0.05),
}


class AvatarCodec:
    """Coefficients of a face to one token for each 1/20 s, on the grid of the audio's tokens, and back.

    Token k is the face in the middle of its 1/20 s, (k + 1/2) / 20 s after the beginning. Tokens have about zero mean
    and unit variance: (coefficient - mean) / deviation, by the constants above.

    Attributes:
        tokens_per_second: 20.
        width: numbers in a token, 52.

    Usage: `AvatarCodec().decode(AvatarCodec().encode(coefficients))`
    """

    tokens_per_second = TOKENS_PER_SECOND
    width = len(COEFFICIENTS)

    def __init__(self) -> None:
        stems = [name.removesuffix("Left").removesuffix("Right") for name in COEFFICIENTS]
        moments = [MOMENTS.get(stem, (0.0, SMALLEST_DEVIATION)) for stem in stems]
        self.mean, self.deviation = torch.tensor(moments, dtype=torch.float32).T.contiguous()

    def encode(self, coefficients: Float[Tensor, "batch tokens 52"]) -> Float[Tensor, "batch tokens 52"]:
        """Tokens of coefficients in [0, 1], float32.

        Raises:
            ValueError: for another shape or dtype, or a number outside [0, 1].

        Usage: `tokens = codec.encode(torch.zeros(1, 40, 52))`
        """
        self._check(coefficients, "coefficients")
        if not bool(((coefficients >= 0) & (coefficients <= 1)).all()):  # also false for NaN
            low, high = coefficients.min().item(), coefficients.max().item()
            raise ValueError(f"coefficients must be in [0, 1], got {low:g} to {high:g}")
        return (coefficients.float() - self.mean.to(coefficients.device)) / self.deviation.to(coefficients.device)

    def decode(self, tokens: Float[Tensor, "batch tokens 52"]) -> Float[Tensor, "batch tokens 52"]:
        """Coefficients in [0, 1] of tokens, float32; what lies outside is cut off.

        Raises:
            ValueError: for another shape or dtype.

        Usage: `coefficients = codec.decode(tokens)`
        """
        self._check(tokens, "tokens")
        return (tokens.float() * self.deviation.to(tokens.device) + self.mean.to(tokens.device)).clamp(0, 1)

    def _check(self, values: Tensor, name: str) -> None:
        if values.ndim != 3 or values.shape[2] != self.width or not values.is_floating_point():
            raise ValueError(
                f"{name} must be float (batch, tokens, {self.width}), got {values.dtype} {tuple(values.shape)}"
            )


def resampled(
    coefficients: Float32[np.ndarray, "frames 52"], from_hz: float, to_hz: float
) -> Float32[np.ndarray, "new_frames 52"]:
    """A track at another frame rate, by straight lines between frames; as long, to half a frame.

    Frame k is the face at (k + 1/2) / rate. Before the first and after the last frame the face rests.

    Raises:
        ValueError: for a track without frames, or a rate that is not a positive number.

    Usage: `resampled(track, from_hz=20, to_hz=60)`
    """
    for name, rate in (("from_hz", from_hz), ("to_hz", to_hz)):
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"{name} must be a positive number, got {rate}")
    if coefficients.ndim != 2 or not len(coefficients):
        raise ValueError(f"a track must have frames, (frames, 52), got {coefficients.shape}")
    if from_hz == to_hz:
        return coefficients.copy()
    count = max(1, round(len(coefficients) * to_hz / from_hz))
    places = (np.arange(count) + 0.5) * from_hz / to_hz - 0.5
    frames = np.arange(len(coefficients))
    columns = [np.interp(places, frames, column) for column in coefficients.T]
    return np.stack(columns, axis=1).astype(np.float32)
