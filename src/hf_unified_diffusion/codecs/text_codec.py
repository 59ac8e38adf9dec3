"""Text and token ids."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

WHITESPACE = " \t\r\n"


class TextCodec:
    """Strings to token ids and back, over a fast byte-level tokenizer.

    A string is text and nothing else: `<mask>` or `<|endoftext|>` written in it are spelled out in ordinary tokens,
    so that no input can put a control token into the context.

    Usage:
        codec = TextCodec(tokenizer)
        codec.decode(codec.encode(["def f(x):"])[0])  # "def f(x):"
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, no special token among them."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return encoded["input_ids"]

    def decode(self, ids: Sequence[int] | Int[Tensor, "length"]) -> str:
        """The text of token ids; special tokens give nothing, bytes that are no UTF-8 give U+FFFD."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def heal(self, prompt: str) -> tuple[str, str]:
        """Split off the whitespace at the end of a prompt that belongs into one token with what follows.

        A byte-level BPE joins a space to the word after it and a line feed to the indent after it; encoded alone they
        are tokens that the network has hardly seen there ("token healing"). What is split off is to be written again by
        the first token, which must start with it. Nothing is split off where nothing would be left.

        Usage: `codec.heal("def f(x):\\n")  # ("def f(x):", "\\n")`
        """
        if not prompt.strip(WHITESPACE) or prompt[-1] not in WHITESPACE:
            return prompt, ""
        size = 1
        if prompt[-1] == "\n":  # line feeds stay together, as far as there are tokens of so many
            size = len(prompt) - len(prompt.rstrip("\n"))
            while size > 1 and not self.starting_with(prompt[-size:]).any():
                size -= 1
        return prompt[:-size], prompt[-size:]

    def starting_with(self, text: str) -> Bool[Tensor, "vocab"]:
        """Which tokens start with a text; all do with the empty one.

        Usage: `codec.starting_with("\\n").nonzero()`
        """
        spelled = "".join(piece for piece, _ in BYTE_LETTERS.pre_tokenize_str(text))
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return torch.tensor([token.startswith(spelled) for token in tokens])

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each token stands for, None for special tokens.

        Raises:
            ValueError: for a tokenizer whose tokens are no strings of bytes.

        Usage: `codec.token_bytes()[codec.encode(["a"])[0][0]]  # b"a"`
        """
        letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
        byte_of = {ord(letter): ord(letter) for letter in letters if ord(letter) < 256}
        others = (byte for byte in range(256) if byte not in byte_of)
        byte_of |= {ord(letter): byte for letter, byte in zip(letters[len(byte_of) :], others, strict=True)}
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        try:
            return [
                None if index in special else bytes(byte_of[ord(letter)] for letter in token)
                for index, token in enumerate(tokens)
            ]
        except KeyError as error:
            raise ValueError(f"the tokenizer must be byte-level, got a token with {chr(error.args[0])!r}") from error


# writes bytes as the letters that byte-level tokens are spelled in
BYTE_LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def pad_right(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: str | torch.device = "cpu"
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"] | None]:
    """Rows of any lengths as one int64 tensor, and which tokens are real; None where all are.

    Usage: `ids, mask = pad_right(codec.encode(prompts), tokenizer.pad_token_id)`
    """
    length = max(len(row) for row in rows)
    ids = torch.tensor(
        [[*row, *[pad_token_id] * (length - len(row))] for row in rows], dtype=torch.int64, device=device
    )
    if all(len(row) == length for row in rows):
        return ids, None
    count = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(length, device=device) < count[:, None]
