"""Cut a byte-level BPE to a smaller one whose tokens are all trained already.

BPE learns its merges one after another, so the first merges of a list are the whole list of a smaller tokenizer of the
same family, and the embeddings of a checkpoint serve it unchanged (arXiv:1508.07909).
"""

import json

import torch
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MASK_TOKEN = "<mask>"
# Bytes that never occur in UTF-8; the byte alphabet of GPT-2 writes them as the characters of the same number.
_NEVER_IN_UTF8 = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}


def truncate_bpe(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int, end_token: str = "<|endoftext|>"
) -> tuple[PreTrainedTokenizerFast, Int[Tensor, "vocab_size"]]:
    """Cut a byte-level BPE to its first merges.

    Ids of the result: the added tokens of the source in their order, its byte tokens, its first merges, the bytes that
    UTF-8 needs and the source lacks, `<mask>`. For SmolLM2 all but the last nine ids are therefore the source's own.
    Normaliser, splitting rule and decoder stay the source's; no special token is added by encoding, and the chat
    template is left behind. Text comes back as the normaliser leaves it: exactly as it was where there is none.

    Args:
        tokenizer: any fast byte-level BPE (SmolLM2, GPT-2, Qwen); left as it was.
        vocab_size: entries of the result, all included; at most those of the source and the new ones.
        end_token: an added token of the source; becomes the eos, bos and pad token.

    Returns:
        The smaller tokenizer, and kept_ids, int64 of shape (vocab_size,): the source's id of each entry, -1 for an
        entry without one (`<mask>`, lacking bytes).

    Raises:
        ValueError: the tokenizer is no byte-level BPE, holds `<mask>` already, lacks end_token, or vocab_size is out of
            range.

    Usage:
        small, kept_ids = truncate_bpe(AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M"), 8192)
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_byte_level(state)
    added = [entry["content"] for entry in sorted(state["added_tokens"], key=lambda entry: entry["id"])]
    if end_token not in added:
        raise ValueError(f"end_token must be one of {added}, got {end_token!r}")
    if MASK_TOKEN in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer must not hold {MASK_TOKEN!r} yet, got it as id {tokenizer.get_vocab()[MASK_TOKEN]}"
        )
    tokens, merges = _first_merges(state["model"], added, vocab_size)
    source_ids = tokenizer.get_vocab()
    kept_ids = torch.tensor([source_ids.get(token, -1) for token in tokens])
    _shrink(state, tokens, merges)
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=end_token,
        bos_token=end_token,
        pad_token=end_token,
        mask_token=AddedToken(MASK_TOKEN, special=True, normalized=False),
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )
    return small, kept_ids


def split_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make a byte-level BPE split every digit off before merging, in place.

    GGUF files name this rule (`tokenizer.ggml.pre = smollm`), and transformers drops it while reading them: spaces
    before a number then come out as other tokens than the checkpoint was trained on.

    Raises:
        ValueError: an entry of the vocabulary joins a digit to something: the tokenizer was trained without this rule.

    Usage:
        split_digits(AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"))
    """
    backend = tokenizer.backend_tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    joined = [
        token
        for token in backend.get_vocab(False)
        if len(token) > 1 and set(token) & set("0123456789") and token not in added
    ]
    if joined:
        raise ValueError(
            f"no entry may join a digit to another character, got {joined[0]!r} and {len(joined) - 1} more"
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _check_byte_level(state: dict) -> None:
    splitter = state["pre_tokenizer"] or {}
    steps = splitter.get("pretokenizers", [splitter])
    if state["model"]["type"] != "BPE" or "ByteLevel" not in [step.get("type") for step in steps]:
        found = f"{state['model']['type']} after {[step.get('type') for step in steps]}"
        raise ValueError(f"the tokenizer must be a BPE after a ByteLevel pre-tokenizer, got {found}")


def _first_merges(model: dict, added: list[str], vocab_size: int) -> tuple[list[str], list[list[str]]]:
    """The entries of the small vocabulary in the order of their ids, and the merges that make them."""
    by_id = sorted(model["vocab"], key=model["vocab"].get)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    tokens = added + [token for token in by_id if token in alphabet]
    lacking = sorted(alphabet - _NEVER_IN_UTF8 - set(tokens))
    room = vocab_size - len(tokens) - len(lacking) - 1
    if room < 0:
        raise ValueError(
            f"vocab_size must be at least {vocab_size - room} (added tokens, bytes, {MASK_TOKEN}), got {vocab_size}"
        )
    made: dict[str, None] = {}
    merges = []
    for left, right in model["merges"]:
        if left + right not in made and len(made) == room:
            break
        made[left + right] = None
        merges.append([left, right])
    if len(made) < room:
        raise ValueError(f"vocab_size must be at most {vocab_size - room + len(made)}, got {vocab_size}")
    return [*tokens, *made, *lacking, MASK_TOKEN], merges


def _shrink(state: dict, tokens: list[str], merges: list[list[str]]) -> None:
    """Write the small vocabulary into a tokenizer's JSON state, in place."""
    ids = {token: index for index, token in enumerate(tokens)}
    state["model"] |= {"vocab": ids, "merges": merges}
    state["added_tokens"] = [entry | {"id": ids[entry["content"]]} for entry in state["added_tokens"]]
    state["post_processor"] = None  # the source's may insert specials, and name them by their old ids
    state["truncation"] = state["padding"] = None
