"""The opt-in that lets `pipeline(model="user/repo", trust_remote_code=True)` run without importing the package."""

import json
import os
from pathlib import Path

CONFIG_NAME = "config.json"
CODE_NAME = "hub_shim.py"
REMOTE_CODE_KEYS = ("auto_map", "custom_pipelines")  # of config.json
CODE = '''"""Loads the installed package, nothing else: pip install hf_unified_diffusion."""

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel, UnifiedDiffusionTaskPipeline
'''
_MODULE = CODE_NAME.removesuffix(".py")
_ENTRIES = {
    "auto_map": {
        "AutoConfig": f"{_MODULE}.UnifiedDiffusionConfig",
        "AutoModel": f"{_MODULE}.UnifiedDiffusionModel",
    },
    "custom_pipelines": {
        "unified-diffusion": {
            "impl": f"{_MODULE}.UnifiedDiffusionTaskPipeline",
            "pt": ["AutoModel"],
            "type": "multimodal",
        }
    },
}


def add_remote_code(folder: str | os.PathLike[str]) -> None:
    """Put the shim into a checkpoint folder and name it in its config.json; needs the folder of a model.

    Who then loads the repository without the package imported is asked to trust its code.
    Raises ValueError where there is no config.json.
    """
    config = Path(folder) / CONFIG_NAME
    if not config.is_file():
        raise ValueError(f"remote_code must be False for what has no {CONFIG_NAME}, got True")
    config.write_text(json.dumps({**json.loads(config.read_text()), **_ENTRIES}, indent=2) + "\n")
    (Path(folder) / CODE_NAME).write_text(CODE)
