"""Where the checkpoint that comes with the package lies."""

from importlib.resources import files
from pathlib import Path

EMBEDDED_CHECKPOINT = Path(str(files(__package__.partition(".")[0]))) / "assets" / "unified-diffusion-edge"
