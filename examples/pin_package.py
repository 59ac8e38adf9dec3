"""Print the line of sources.json that pins a package's present version, its licence left for a person to fill in.

Use: python examples/pin_package.py pypi networkx --source python_packages --extract python --include '*.py'
     python examples/pin_package.py debian sqlite3-doc --source docs_sqlite --extract html
Read the licence inside the package before you write its SPDX name: only permissive ones and "Public-Domain" pass.
"""

import argparse
import json
import tempfile
from pathlib import Path
from urllib.parse import unquote

from hf_unified_diffusion.training.data_extract import EXTRACTORS
from hf_unified_diffusion.training.data_fetch import registry_command, run_client, sha256_of
from hf_unified_diffusion.training.data_sources import REGISTRIES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("registry", choices=REGISTRIES)
parser.add_argument("name")
parser.add_argument("--source", required=True, help="the shard its documents go to")
parser.add_argument("--extract", required=True, choices=sorted(EXTRACTORS), help="the reader")
parser.add_argument("--include", nargs="*", default=[], help="shell patterns over paths in the archive")
parser.add_argument("--exclude", nargs="*", default=[])
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    command = registry_command(arguments.registry, arguments.name)
    path = run_client(command, Path(folder), f"{arguments.registry} package {arguments.name!r}")
    # name_version_arch.deb, name-version-tags.whl, name-version.tgz
    stem = path.name.removesuffix(".tar.gz").removesuffix(".tgz")
    version = {".deb": stem.split("_"), ".whl": stem.split("-")}.get(path.suffix, stem.rsplit("-", 1))[1]
    row = {
        "registry": arguments.registry,
        "name": arguments.name,
        "version": unquote(version),
        "file": path.name,
        "sha256": sha256_of(path),
        "licence": "",
        "source": arguments.source,
        "extract": arguments.extract,
        "include": arguments.include,
        "exclude": arguments.exclude,
    }
print(json.dumps(row))
