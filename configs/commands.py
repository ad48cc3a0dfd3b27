"""The options of each `malmoi` command that is not a whole run."""

from dataclasses import dataclass

from configs.schema import DocumentUnit, SamplingSettings


@dataclass(frozen=True)
class TokenizerOptions:
    """Train a tokenizer on text."""

    input: tuple[str, ...] = ()
    """Files, folders or globs of .txt, .jsonl, .ndjson, each also .gz."""
    out: str = ""
    """Folder to write: tokenizer.json, vocab.json, merges.txt."""
    vocab_size: int = 32000
    """Number of token ids, special tokens and byte pieces included."""
    sample_bytes: int = 100_000_000
    """Most text to train on, in UTF-8 bytes; a larger corpus is sampled by hash."""
    min_character_count: int = 10
    """Times a character that is no Hangul syllable must occur to get a token of its own."""
    text_field: str = "text"
    """Field of a JSON line that holds the text."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file."""


@dataclass(frozen=True)
class PrepareOptions:
    """Turn text into token shards. With --config, the settings of a run say what and where instead."""

    input: tuple[str, ...] = ()
    """Files, folders or globs of .txt, .jsonl, .ndjson, each also .gz."""
    tokenizer: str = ""
    """Folder of a trained tokenizer."""
    out: str = ""
    """Folder that the shard folder is built in; its name is the fingerprint of all that it depends on."""
    held_out: float = 0.01
    """Share of documents, by hash of their text, that is never trained on."""
    shard_tokens: int = 268_435_456
    """Tokens at which a shard is closed and the next begun."""
    text_field: str = "text"
    """Field of a JSON line that holds the text."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file."""


@dataclass(frozen=True)
class VerifyOptions:
    """Whether a folder is whole: malmoi verify DIR."""

    path: str = ""
    """A shard folder, a checkpoint or a model."""


@dataclass(frozen=True)
class InspectOptions:
    """What shards hold: malmoi inspect DIR."""

    path: str = ""
    """A shard folder, or a folder that holds one."""
    tokenizer: str | None = None
    """Folder of the tokenizer that the shards were made with; none: `tokenizer` near the shards."""
    document: int | None = None
    """Number of a training document to show decoded, from 0."""


@dataclass(frozen=True)
class GenerateOptions(SamplingSettings):
    """Draw text from a model folder."""

    model: str = ""
    """Model folder."""
    prompts_file: str | None = None
    """File of prompts, one a line, instead of --prompt."""
    batch: int = 1
    """Prompts generated at once; when sampling, above 1 a prompt's samples depend on the others of its batch."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are cut off."""
    logprobs: bool = False
    """Add the natural log-probability of each new token under the model itself, before temperature and top_k."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Loss, perplexity and bits per byte of a model, or of several in one table."""

    model: tuple[str, ...] = ()
    """Model folders."""
    data: str = ""
    """A shard folder (its held-out part is scored), or a file or folder of text."""
    batch: int = 8
    """Windows scored at once."""
    stride: int | None = None
    """Tokens from one window to the next; below the context, tokens have more context. None: the context."""
    text_field: str = "text"
    """Field of a JSON line that holds the text."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class FewshotOptions:
    """Put tasks to a model with none, one or several examples in the prompt."""

    model: str = ""
    """Folder of any causal language model."""
    tasks: tuple[str, ...] = ()
    """Names of tasks or groups, patterns such as 'arithmetic_*', `all`, or paths of task files (.yaml)."""
    shots: tuple[int, ...] = (0, 1, 5)
    """Numbers of examples in the prompt."""
    seeds: tuple[int, ...] = (0,)
    """Seeds that draw the examples; several give a mean and its standard error."""
    out: str = ""
    """Folder that gets one JSON file a task."""
    limit: int | None = None
    """Most documents a task; none: all."""
    batch: int = 8
    """Prompts that the model reads at once."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class QualityOptions(SamplingSettings):
    """How varied a model's samples are, and how much of them stands in its training text."""

    model: str = ""
    """Model folder; its tokenizer counts tokens."""
    prompts_file: str | None = None
    """File of prompts, one a line, instead of --prompt."""
    texts: str | None = None
    """File or folder of texts to measure instead of samples drawn from the model."""
    data: str | None = None
    """Shard folder that the model was trained on, to look for shared runs; none: they are not looked for."""
    batch: int = 1
    """Prompts generated at once."""
    text_field: str = "text"
    """Field of a JSON line that holds the text."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: malmoi report RUN [RUN ...]."""

    run: tuple[str, ...] = ()
    """Run folders; several are shown side by side."""
    fewshot: tuple[str, ...] = ()
    """Folders of `malmoi fewshot`, shown beside those named `fewshot` in the run folders."""
    out: str | None = None
    """File to write; none: report.html in the first run folder."""


@dataclass(frozen=True)
class DoctorOptions:
    """What this machine can do, and what to install where it cannot."""

    json: bool = False
    """Print one JSON object and nothing else."""
