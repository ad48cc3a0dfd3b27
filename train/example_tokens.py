"""The tokenizer of a fine-tuned model: GPT-1's start, delimiter and extract tokens around texts and pairs of texts.

It is exported with the model, so that whoever serves the model cuts, joins and ends texts as training did.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from configs.errors import BadInput, one_line

DELIMITER, EXTRACT, PAD = "<delimiter>", "<extract>", "<pad>"


@dataclass(frozen=True)
class EncodedTexts:
    """Sequences of token ids."""

    ids: tuple[NDArray[np.int32], ...]
    """1-D each, from the start token to the extract token."""
    cut: int
    """Sequences that were longer than the context and lost their end, in a pair the longer text first."""


@dataclass(frozen=True)
class ExampleTokenizer:
    """A tokenizer that frames texts for a classifier."""

    tokenizer: Any
    context: int
    """Most tokens of a sequence."""

    @property
    def size(self) -> int:
        """Token ids, with those that fine-tuning adds."""
        return len(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that fills up shorter sequences on their right; never the last one that counts."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, pairs: list[tuple[str, str | None]]) -> EncodedTexts:
        """Ids of texts and pairs of texts; a special token that is spelt out in one of them is text."""
        texts = [text for text, _ in pairs]
        others = [other for _, other in pairs if other is not None]
        words: dict[str, Any] = {"text": texts, **({"text_pair": others} if others else {})}
        whole = [len(ids) for ids in self.tokenizer(**words)["input_ids"]]
        fitted = self.tokenizer(**words, truncation=True, max_length=self.context)["input_ids"]
        return EncodedTexts(
            tuple(np.array(ids, dtype=np.int32) for ids in fitted), sum(length > self.context for length in whole)
        )

    def save(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer` reads."""
        self.tokenizer.save_pretrained(folder)


def example_tokenizer(folder: Path, context: int) -> ExampleTokenizer:
    """The tokenizer of a model folder, with a delimiter and an extract token behind its own tokens.

    Raises:
        BadInput: there is no tokenizer, or one that `tokenizers` does not read, or one without an end of text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and `tokenizers`' own alike
        raise BadInput(
            f"{folder}: no tokenizer that can be loaded ({one_line(error)}); export the model again"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise BadInput(f"{folder}: its tokenizer has no tokenizer.json, which fine-tuning needs; convert it first")
    start = tokenizer.bos_token or tokenizer.eos_token
    if start is None:
        raise BadInput(f"{folder}: the tokenizer has no bos_token to begin a text; set it in tokenizer_config.json")
    added = [DELIMITER, EXTRACT] + ([PAD] if tokenizer.pad_token is None else [])
    known = tokenizer.get_vocab()
    taken = [token for token in (DELIMITER, EXTRACT) if token in known]
    if taken:
        raise BadInput(f"{folder}: its tokenizer has a token {taken[0]} already; give the model before its fine-tuning")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (start, DELIMITER, EXTRACT)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {EXTRACT}",
        pair=f"{start} $A {DELIMITER} $B {EXTRACT}",
        special_tokens=list(ids.items()),
    )
    # Text is data: a special token spelt out in it must not become one, here or where the model is served.
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.model_max_length = context
    return ExampleTokenizer(tokenizer, context)
