"""The options of each `malmoi` command that is not a whole run."""

from dataclasses import dataclass

from configs.schema import CorpusSettings, SamplingSettings, ShardSettings, TextSettings, VocabularySettings


@dataclass(frozen=True)
class TokenizerOptions(CorpusSettings, VocabularySettings):
    """Train a tokenizer on text."""

    out: str = ""
    """Folder to write: tokenizer.json, vocab.json, merges.txt."""


@dataclass(frozen=True)
class PrepareOptions(CorpusSettings, ShardSettings):
    """Turn text into token shards. With --config, the settings of a run say what and where instead."""

    tokenizer: str = ""
    """Folder of a trained tokenizer."""
    out: str = ""
    """Folder that the shard folder is built in; its name is the fingerprint of all that it depends on."""


@dataclass(frozen=True)
class VerifyOptions:
    """Whether a folder is whole: malmoi verify DIR."""

    path: str = ""
    """A shard folder, a checkpoint or a model."""
    tokenizer: str | None = None
    """Folder of the tokenizer that shards must be made with; none: `tokenizer` near the shards, where there is one."""


@dataclass(frozen=True)
class InspectOptions:
    """What shards hold: malmoi inspect DIR."""

    path: str = ""
    """A shard folder, or a folder that holds one."""
    tokenizer: str | None = None
    """Folder of the tokenizer that the shards were made with; none: `tokenizer` near the shards."""
    document: int | None = None
    """Number of a document to show decoded, from 0."""
    held_out: bool = False
    """Show a document of the held-out part."""


@dataclass(frozen=True)
class GenerateOptions(SamplingSettings):
    """Draw text from a model folder."""

    model: str = ""
    """Model folder."""
    prompts_file: str | None = None
    """File of prompts, one a line, instead of --prompt."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class EvaluateOptions(TextSettings):
    """Loss, perplexity and bits per byte of a model."""

    model: str = ""
    """Model folder."""
    data: str = ""
    """A shard folder (its held-out part is scored), or a file or folder of text."""
    batch: int = 8
    """Windows scored at once."""
    stride: int | None = None
    """Tokens from one window to the next; below the context, tokens have more context. None: the context."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: malmoi report RUN [RUN ...]."""

    run: tuple[str, ...] = ()
    """Run folders; several are shown side by side."""
    out: str | None = None
    """File to write; none: report.html in the first run folder."""


@dataclass(frozen=True)
class DoctorOptions:
    """What this machine can do, and what to install where it cannot."""

    json: bool = False
    """Print one JSON object and nothing else."""
