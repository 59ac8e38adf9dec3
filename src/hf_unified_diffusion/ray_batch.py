"""Bulk generation with Ray Data: a dataset of prompts in, Parquet files of results out, every prompt exactly once.

The id of a prompt decides its seed, and whether its result is there already. A worker or a driver that is killed leaves
whole files only, and whoever goes on skips what they hold.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import ray.data

from .contracts import MODALITIES, TOKEN_MODALITIES
from .engine import ArrowEngine
from .media_files import png_bytes, wav_bytes
from .pipelines.text_inputs import LARGEST_SEED
from .quantization.parquet_writer import fsync_path

Id = int | str
RESULT_FIELDS = [
    ("modality", pa.string()),
    ("text", pa.string()),  # of text and code: the prompt and what follows
    ("data", pa.binary()),  # a PNG or WAV file
    ("seed", pa.int64()),
    ("num_tokens", pa.int64()),
    ("finished", pa.bool_()),
    ("error", pa.string()),  # of a prompt that breaks a rule
]


@dataclass(frozen=True)
class Prompt:
    """One row of the dataset."""

    id: Id
    prompt: str
    modality: str = "text"
    options: Mapping[str, Any] = field(default_factory=dict)


def seed_of(seed: int, prompt_id: Id) -> int:
    """The seed of a prompt: of its id and the run's seed, and of nothing else.

    Usage: `seed_of(0, 17)`
    """
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % LARGEST_SEED


class PromptWriter:
    """What Ray Data maps over batches of prompts: it writes their results to one file and gives back their ids.

    The columns of a batch are `id` (integers or strings, each once), `prompt`, and perhaps `modality` and `options` (of
    `ArrowEngine.submit`, a mapping or its JSON; null for none). Columns of results are `id` and those of
    `RESULT_FIELDS`.

    Args:
        output: a folder that all workers share.
        checkpoint, device: of the engine; the embedded checkpoint by default.
        seed: of the run, see `seed_of`.
        options: of all prompts; a prompt's own go before.
        max_batch: prompts of the same options that run together.

    Usage: `dataset.map_batches(PromptWriter, fn_constructor_kwargs={"output": "results"}, batch_size=16, ...)`, or
        `write_results(dataset, "results", workers=2)`
    """

    def __init__(
        self,
        output: str | Path,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        max_batch: int = 8,
    ):
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        self.results = Results(output)
        self.engine = ArrowEngine.from_pretrained(checkpoint, device=device)
        self.seed, self.options, self.max_batch = seed, dict(options or {}), max_batch

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Write what is not written yet.

        Returns:
            per prompt its `id`, whether it `is_new`, and the `pid` of the process.

        Raises:
            ValueError: a batch that is no batch of prompts.
        """
        prompts = prompts_in(batch)
        known = self.results.among([prompt.id for prompt in prompts])
        new = [prompt for prompt in prompts if prompt.id not in known]
        if new:
            self.results.write(self.rows_of(new))
        is_new = [prompt.id not in known for prompt in prompts]
        return {"id": [prompt.id for prompt in prompts], "is_new": is_new, "pid": [os.getpid()] * len(prompts)}

    def rows_of(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The results of prompts, those of the same options made together."""
        groups: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(json.dumps([prompt.modality, {**prompt.options}], sort_keys=True), []).append(prompt)
        batches = [
            group[at : at + self.max_batch] for group in groups.values() for at in range(0, len(group), self.max_batch)
        ]
        return [row for batch in batches for row in self.made(batch)]

    def made(self, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The results of one batch; where it breaks a rule, prompt by prompt, and the rule for the one that does."""
        seeds = [seed_of(self.seed, prompt.id) for prompt in batch]
        options = {**self.options, **batch[0].options}
        try:
            result = self.engine.diffuse(
                [prompt.prompt for prompt in batch], batch[0].modality, seed=seeds, return_result=True, **options
            )
        except ValueError as error:
            if len(batch) == 1:
                return [{"id": batch[0].id, "modality": batch[0].modality, "seed": seeds[0], "error": str(error)}]
            return [row for prompt in batch for row in self.made([prompt])]
        rows = []
        for place, (prompt, output) in enumerate(zip(batch, result.output, strict=True)):
            row: dict[str, Any] = {"id": prompt.id, "modality": prompt.modality, "seed": seeds[place]}
            if prompt.modality in TOKEN_MODALITIES:
                ids, finished = result.extra["completion_ids"][place], result.extra["finished"][place]
                row |= {"text": output, "num_tokens": len(ids), "finished": finished}
            elif prompt.modality == "audio":
                row["data"] = wav_bytes(output, result.sampling_rate_hz or 0)
            else:
                row["data"] = png_bytes(output)
            rows.append(row)
        return rows


class Results:
    """The files of a run: each whole, with the results of some ids.

    Usage: `Results("results").table()["text"]`
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ranges: dict[Path, tuple[Id, Id]] = {}

    def files(self) -> list[Path]:
        """All that were written, by name."""
        return sorted(self.folder.glob("*.parquet"))

    def among(self, ids: Sequence[Id]) -> set[Id]:
        """Which of some ids have a result; only files whose range they touch are read."""
        first, last, found = min(ids), max(ids), set()
        for file in self.files():
            if file not in self._ranges:
                statistics = parquet.read_metadata(file).row_group(0).column(0).statistics
                self._ranges[file] = (statistics.min, statistics.max)
            low, high = self._ranges[file]
            if low <= last and first <= high:  # type: ignore[operator]
                found |= set(parquet.read_table(file, columns=["id"])["id"].to_pylist())
        return found & set(ids)

    def ids(self) -> list[Id]:
        """All ids, in the order of the files."""
        return [i for file in self.files() for i in parquet.read_table(file, columns=["id"])["id"].to_pylist()]

    def table(self) -> pa.Table:
        """All results by id.

        Raises:
            ValueError: there are none, or an id is there twice.
        """
        if not self.files():
            raise ValueError(f"a folder of results must hold Parquet files, got none in {str(self.folder)!r}")
        table = pa.concat_tables(parquet.read_table(file) for file in self.files()).sort_by("id")
        if len(table) != len(table["id"].unique()):
            raise ValueError(f"each id must have one result, got {len(table)} of {len(table['id'].unique())} ids")
        return table

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write results to a file of their own, named by their ids; it is there as a whole or not at all."""
        rows = sorted(rows, key=lambda row: row["id"])
        ids = [row["id"] for row in rows]
        kind = pa.string() if isinstance(ids[0], str) else pa.int64()
        table = pa.Table.from_pylist(rows, pa.schema([("id", kind), *RESULT_FIELDS]))
        path = self.folder / f"{range_name(ids)}.parquet"
        temporary = path.with_suffix(f".partial-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            parquet.write_table(table, temporary, row_group_size=len(rows))
            fsync_path(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        fsync_path(self.folder)
        return path


def range_name(ids: Sequence[Id]) -> str:
    """The first and the last of sorted ids, readable, and a digest of all."""
    ends = ["".join(re.findall(r"\w", str(one), re.ASCII))[:24] for one in (ids[0], ids[-1])]
    return f"{ends[0]}-{ends[1]}-{hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]}"


def prompts_in(batch: Mapping[str, Sequence[Any]]) -> list[Prompt]:
    """The prompts of a batch of columns; ValueError names the rule that one breaks."""
    missing = {"id", "prompt"} - batch.keys()
    if missing:
        raise ValueError(f"a batch of prompts must have the columns id and prompt, got {sorted(batch)}")
    prompts = []
    for place, (prompt_id, text) in enumerate(zip(batch["id"], batch["prompt"], strict=True)):
        own = prompt_id.item() if isinstance(prompt_id, np.generic) else prompt_id
        if isinstance(own, bool) or not isinstance(own, int | str):
            raise ValueError(f"id must be an integer or a string, got {own!r}")
        given = batch["options"][place] if "options" in batch else None
        options = json.loads(given or "{}") if isinstance(given, str | None) else given
        modality = str(batch["modality"][place]) if "modality" in batch else "text"
        if modality not in MODALITIES:
            raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r} for id {own!r}")
        prompts.append(Prompt(own, str(text), modality, {k: v for k, v in options.items() if v is not None}))
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise ValueError(f"each id must be in a batch once, got {[prompt.id for prompt in prompts]}")
    return prompts


def remaining(dataset: "ray.data.Dataset", output: str | Path) -> "ray.data.Dataset":
    """The rows of a dataset whose ids have no result yet."""
    done = np.asarray(Results(output).ids())

    def without_done(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        keep = ~np.isin(batch["id"], done)
        return {name: column[keep] for name, column in batch.items()}

    return dataset.map_batches(without_done) if len(done) else dataset


def written(
    dataset: "ray.data.Dataset",
    output: str | Path,
    workers: int = 1,
    rows_per_file: int = 16,
    num_cpus: float = 0.5,
    num_gpus: float = 0,
    **writer: Any,
) -> "ray.data.Dataset":
    """A dataset that, when it is read, writes the results of all prompts that have none and gives their ids.

    Args:
        dataset: with the columns of `PromptWriter`, each id once.
        output: a folder that all workers share; what is there stays and is skipped.
        workers: processes, each with an engine; one that is killed is started again, and its prompts with it.
        rows_per_file: prompts of a file, which is what a kill may cost.
        num_cpus, num_gpus: that each worker reserves. Reading needs CPUs too: workers that reserve all wait forever.
        writer: as for `PromptWriter`.

    Usage:
        for batch in written(ray.data.read_parquet("prompts"), "results", workers=2).iter_batches():
            print(len(batch["id"]))
        Results("results").table()
    """
    if rows_per_file < 1:
        raise ValueError(f"rows_per_file must be at least 1, got {rows_per_file}")
    return remaining(dataset, output).map_batches(
        PromptWriter,
        batch_size=rows_per_file,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        fn_constructor_kwargs={"output": str(Path(output).absolute()), **writer},
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )  # Ray Data starts actors and their tasks again without limit, unless told otherwise
