"""Tokenized shards: packed once into a flat file, and read in an order that a step number decides."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Generator, Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from .bulk_tokenizer import BulkTokenizer
from .layouts import TokenBatch

MAX_END_TOKENS = 16  # a document ends with 1 to 16 eos tokens: a canvas must learn what comes after the end


@dataclass(frozen=True)
class PackedTokens:
    """Documents one after the other.

    Attributes:
        tokens: uint16 or uint32 (N,), each document followed by eos tokens.
        documents: uint32 (N,), the number of the document a token belongs to.
        modality: "text" or "code".
        num_bytes: UTF-8 bytes of the text in it, for bits per byte.
    """

    tokens: np.ndarray
    documents: np.ndarray
    modality: str
    num_bytes: int

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "PackedTokens":
        """Only the first `count` tokens (documents are shuffled already); `num_bytes` shrinks in proportion."""
        share = min(1.0, count / len(self))
        return PackedTokens(self.tokens[:count], self.documents[:count], self.modality, round(self.num_bytes * share))

    def rows(self, starts: Int[Tensor, "rows"], length: int) -> TokenBatch:
        """Sequences of `length` tokens from the given starts."""
        index = starts.numpy()[:, None] + np.arange(length)
        tokens = torch.from_numpy(self.tokens[index].astype(np.int64))
        return TokenBatch(tokens, torch.from_numpy(self.documents[index].astype(np.int64)), self.modality)


def pack_shards(
    shards: Iterable[Path], tokenizer: PreTrainedTokenizerFast, modality: str, cache_dir: Path, seed: int = 0
) -> PackedTokens:
    """Tokenize Parquet shards (columns `prompt`, `text`, `modality`), shuffle the documents, pack them.

    Cached under `cache_dir`, by tokenizer, modality, seed, and name, size and time of the shards.

    Usage: `pack_shards(Path("data/shards/train").glob("*.parquet"), tokenizer, "code", Path("runs/tokens"))`
    Raises ValueError if no document of the modality is there.
    """
    shards = sorted(shards)
    key = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for shard in shards:
        key.update(f"{shard}:{shard.stat().st_size}:{shard.stat().st_mtime_ns}".encode())
    stem = cache_dir / f"{modality}-{seed}-{key.hexdigest()[:16]}"
    if not stem.with_suffix(".npz").exists():
        write_packed(shards, tokenizer, modality, stem, seed)
    packed = np.load(stem.with_suffix(".npz"), mmap_mode=None, allow_pickle=False)
    return PackedTokens(packed["tokens"], packed["documents"], modality, int(packed["num_bytes"]))


def write_packed(shards: list[Path], tokenizer: PreTrainedTokenizerFast, modality: str, stem: Path, seed: int) -> None:
    """Tokenize and write one packed file."""
    from datasets import Dataset

    texts = []
    for shard in shards:
        rows = Dataset.from_parquet(str(shard), keep_in_memory=True)
        texts += [row["prompt"] + row["text"] for row in rows if row["modality"] == modality]
    if not texts:
        raise ValueError(f"no document of modality {modality!r} in {[shard.name for shard in shards]}")
    packed = pack_texts(texts, tokenizer, modality, seed)
    stem.parent.mkdir(parents=True, exist_ok=True)
    partial = stem.with_suffix(f".{os.getpid()}.partial.npz")  # two runs may pack the same shards at once
    np.savez(partial, tokens=packed.tokens, documents=packed.documents, num_bytes=packed.num_bytes)
    partial.replace(stem.with_suffix(".npz"))


def pack_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, modality: str, seed: int = 0) -> PackedTokens:
    """Tokenize documents, shuffled, one after the other.

    Usage: `pack_texts(load_dataset("parquet", data_files=file, split="train")["text"], tokenizer, "text")`
    Raises ValueError if there is no document.
    """
    texts = list(texts)
    if not texts:
        raise ValueError(f"texts of modality {modality!r} must hold at least one document, got none")
    random = np.random.default_rng(seed)
    random.shuffle(texts)
    bulk = BulkTokenizer(plain_text_tokenizer(tokenizer))
    tokens, lengths = [], []
    for ids in tqdm(bulk.encode_each(texts), desc=f"tokenize {modality}", total=len(texts), unit="doc"):
        end = [tokenizer.eos_token_id] * int(random.integers(1, MAX_END_TOKENS + 1))
        tokens.append(np.asarray(ids + end, dtype=np.uint32 if len(tokenizer) > 65536 else np.uint16))
        lengths.append(len(tokens[-1]))
    documents = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    return PackedTokens(np.concatenate(tokens), documents, modality, sum(len(text.encode()) for text in texts))


def plain_text_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy for which `<mask>` in a document is six characters: as the mask token it would be an impossible label."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return backend


def starts_for(
    packed: PackedTokens, length: int, rows: int, step: int, seed: int, process: int = 0, num_processes: int = 1
) -> Int[Tensor, "rows"]:
    """Where the rows of a step begin: every epoch visits each sequence once, in a new order, from a new offset.

    A function of the step alone, so that a resumed run reads exactly what an unbroken one would have. Processes take
    turns: those of one step read what a single process with as many rows in all would.

    Raises:
        ValueError: the tokens do not fill one step.
    """
    per_epoch = (len(packed) - length) // length
    if per_epoch < rows * num_processes:
        raise ValueError(f"{len(packed)} tokens do not fill {rows * num_processes} rows of {length}")
    first = (step * num_processes + process) * rows
    starts = []
    for position in range(first, first + rows):
        epoch, place = divmod(position, per_epoch)
        offset, order = epoch_order(seed * 1_000_003 + epoch, length, per_epoch)
        starts.append(int(order[place]) * length + offset)
    return torch.tensor(starts)


@lru_cache(maxsize=8)  # of 320,000 sequences an order takes milliseconds, and every row of a step asks for it
def epoch_order(seed: int, length: int, per_epoch: int) -> tuple[int, Int[Tensor, "sequences"]]:
    """Where the first sequence of an epoch starts, and the order of all."""
    generator = Generator().manual_seed(seed)
    offset = int(torch.randint(0, length, (), generator=generator))
    return offset, torch.randperm(per_epoch, generator=generator)


def bytes_per_token(tokenizer: PreTrainedTokenizerFast) -> Int[Tensor, "vocab"]:
    """UTF-8 bytes each token stands for; 0 for added tokens. Byte-level BPE writes one character a byte."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    sizes = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for token, index in vocabulary.items():
        sizes[index] = 0 if token in added else len(token)
    return sizes
