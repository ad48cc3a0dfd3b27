"""A SentencePiece-style BPE for Korean, trained, saved and loaded through `tokenizers`.

The pipeline, in order:

1. NFC, so that macOS's decomposed Hangul meets the same tokens as everyone else's.
2. A literal `▁` becomes U+2126, a code point that NFC never leaves behind, and every space becomes `▁`:
   the escape makes decoding exact.
3. Words are cut by `WORD_PATTERN`: a run of letters, one digit, a run of other signs, each with the space
   before it; newlines by themselves. No token reaches over such a boundary, so no merge of ordinary text can
   spell a special token.
4. BPE, with the 256 byte pieces for every character outside the alphabet: nothing is `<unk>`.
"""

import heapq
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from malmoi.atomic_io import fsync_path, write_atomic
from malmoi.configs.corpus import VocabularySettings
from malmoi.errors import UserError, disk_error

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNK)
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "▁"
SPACE_ESCAPE = "\u2126"
WORD_PATTERN = r"▁?[\p{L}\p{M}]+|▁?\p{N}|▁?[^▁\n\p{L}\p{M}\p{N}]+|▁+(?=▁)|▁|\n+"

TOKENIZER_FILE = "tokenizer.json"


def is_hangul_syllable(character: str) -> bool:
    """Return whether `character` is one of the 11,172 precomposed syllables of Unicode."""
    return "가" <= character <= "힣"


def sample_by_hash(documents: Iterable[str], max_bytes: int) -> list[str]:
    """Return the documents of smallest hash that together hold at most `max_bytes` bytes of UTF-8, in reading order.

    The choice depends on the texts alone and not on their order, needs one pass, and holds no more than
    `max_bytes` in memory. A single document above the limit is cut to it.
    """
    kept: list[tuple[int, int, str]] = []
    held, cutoff = 0, 2**64
    for position, text in enumerate(documents):
        encoded = text.encode()
        if len(encoded) > max_bytes:
            text = encoded[:max_bytes].decode(errors="ignore")
            encoded = text.encode()
        rank = int.from_bytes(blake2b(encoded, digest_size=8).digest(), "big")
        if rank >= cutoff:
            continue
        heapq.heappush(kept, (-rank, position, text))
        held += len(encoded)
        while kept and (held > max_bytes or -kept[0][0] == cutoff):
            cutoff = -kept[0][0]
            held -= len(heapq.heappop(kept)[2].encode())
    return [text for _, _, text in sorted(kept, key=lambda entry: entry[1])]


def alphabet_of(texts: Iterable[str], min_character_count: int) -> list[str]:
    """Return the characters that get their own token, sorted: Hangul syllables seen, and others seen often enough."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text))
    counts[SPACE_ESCAPE] += counts.pop(SPACE, 0)
    counts.pop(" ", None)
    kept = {c for c, n in counts.items() if n > 0 and (is_hangul_syllable(c) or n >= min_character_count)}
    return sorted(kept | {SPACE})


def untrained_tokenizer() -> Tokenizer:
    """Return the pipeline of this module around an empty BPE."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(SPACE, SPACE_ESCAPE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(SPACE_ESCAPE, SPACE),
        ]
    )
    return tokenizer


def train_tokenizer(
    documents: Iterable[str], settings: VocabularySettings, show_progress: bool = False, place: str = "the corpus"
) -> Tokenizer:
    """Train a tokenizer of exactly `settings.vocab_size` ids, or fewer where the text offers no more merges.

    The same documents and settings give the same tokenizer, to the byte of its file.

    Args:
        place: where the documents are from, for messages.

    Raises:
        UserError: there is no text, or the vocabulary cannot hold the alphabet.
    """
    texts = sample_by_hash(documents, settings.sample_bytes)
    if not any(texts):
        raise UserError(f"{place}: no text to train a tokenizer on; give corpus.input files that hold some")
    alphabet = alphabet_of(texts, settings.min_character_count)
    fixed = len(SPECIAL_TOKENS) + len(BYTE_PIECES) + len(alphabet)
    if settings.vocab_size < fixed:
        raise UserError(
            f"tokenizer.vocab_size {settings.vocab_size} is smaller than the alphabet: {len(alphabet)} characters, "
            f"{len(BYTE_PIECES)} byte pieces and {len(SPECIAL_TOKENS)} special tokens need {fixed}; "
            f"set it to {fixed} or more, better several times that"
        )
    tokenizer = untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *BYTE_PIECES],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return with_bos_and_literal_specials(_without_special_byte_pieces(tokenizer))


def _without_special_byte_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """Remove the byte pieces from the added tokens: the trainer reserves ids only for special tokens, but a
    special `<0x41>` would swallow the literal text `<0x41>`."""
    description: dict[str, Any] = json.loads(tokenizer.to_str())
    description["added_tokens"] = [t for t in description["added_tokens"] if t["content"] in SPECIAL_TOKENS]
    return Tokenizer.from_str(json.dumps(description))


def with_bos_and_literal_specials(tokenizer: Tokenizer) -> Tokenizer:
    """Set what text around the ids means: `<s>` goes before a prompt, and a special token spelled out is text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, special_token_id(tokenizer, BOS))]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads with the same ids.

    `tokenizer.json` comes last, complete, when everything else is on the disk: if it is there, all is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = tokenizer.model.save(str(folder))
    except Exception as error:  # tokenizers raises no other
        raise disk_error(error, folder) or error from None
    for file in files:
        fsync_path(Path(file))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    write_atomic(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `folder/tokenizer.json`, with special tokens spelled out in text taken as text.

    Raises:
        UserError: the folder or file is not there, or it lacks a special token.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise UserError(f"{file}: no tokenizer there; train one with `malmoi tokenizer --input F --out {folder}`")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # `tokenizers` raises plain Exception for every error of the file
        raise UserError(f"{file}: not a tokenizer that `tokenizers` reads ({error}); train it again") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{file}: lacks the special tokens {' '.join(missing)}; train it with `malmoi tokenizer`")
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token.

    Raises:
        UserError: the tokenizer has none of that name.
    """
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise UserError(f"the tokenizer lacks the special token {token}; train one with `malmoi tokenizer`")
    return number
