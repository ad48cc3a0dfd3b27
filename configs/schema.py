"""Every setting of pre-training. The line under a field is its documentation: meaning, unit, what `None` stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DocumentUnit = Literal["line", "paragraph", "file"]
OpeningUnit = Literal["sentence", "line"]
OptimizerName = Literal["adamw", "muon"]
Encoding = Literal["utf-8", "cp949", "euc-kr", "auto"]
OnError = Literal["stop", "skip"]
UnicodeForm = Literal["NFC", "none"]
SharedFilesystem = bool | Literal["auto"]
Engine = Literal["local", "dask", "slurm"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Sharding = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
BackendName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class CleaningSettings:
    """What is taken out of the text. Each is off unless asked for, and each is counted in the manifest."""

    shortest: int = 0
    """Characters under which a document is left out; 0: none is."""
    longest: int = 0
    """Characters above which a document is left out; 0: none is."""
    exact_duplicates: bool = False
    """Leave out a document whose text was read before; costs the preparing process about 100 bytes a document."""
    near_duplicates: float = 0.0
    """Leave out a document whose words in fives are shared with an earlier one to this Jaccard share, by MinHash;
    0: none is. Costs the preparing process about 10 kB a document; needs `pip install malmoi[dedup]`."""
    hangul_share: float = 0.0
    """Share of Hangul among a document's characters that are no white space, under which it is left out; 0: none is."""
    repeated_lines: bool = False
    """Keep only the first of a document's equal lines; blank lines stay."""
    emails: bool = False
    """Take e-mail addresses out of the text."""
    resident_numbers: bool = False
    """Take resident registration numbers (six digits, a hyphen or none, seven digits) out of the text."""


@dataclass(frozen=True)
class SourceSettings:
    """One of several sources. Its shards are its own, so a change of weight or of another source rebuilds nothing."""

    name: str
    """How messages and mixtures call the source."""
    input: tuple[str, ...]
    """Files, folders, globs or URLs, as in `corpus.input`."""
    weight: float = 1.0
    """Share of the training samples that this source gives, relative to the other sources' weights."""


@dataclass(frozen=True)
class TextSettings:
    """How files are read as text, and how that falls into documents."""

    text_field: str = "text"
    """Field or column that holds the text; dots reach into nested objects."""
    document: DocumentUnit = "line"
    """What one document is in a .txt file: a line, a block between blank lines, or the whole file."""
    encoding: Encoding = "utf-8"
    """How the text is encoded, decoded strictly; auto: each file as a whole is UTF-8 or else CP949."""
    on_error: OnError = "stop"
    """What a broken line or record does: stop, naming the place, or be skipped and counted by cause."""
    largest_skipped_share: float = 0.01
    """Share of all records above which skipping fails after all."""
    normalise: UnicodeForm = "NFC"
    """Unicode form of every document; macOS writes Hangul decomposed, which NFC mends."""
    longest_document: int = 67_108_864
    """Bytes above which one document of a .txt file is cut, at a character, into several; counted in the manifest.
    A JSON or CSV record of more than four times as many bytes is broken input. Memory is bounded by it."""


@dataclass(frozen=True)
class CorpusSettings(TextSettings):
    """Which text is read, and how it falls into documents."""

    input: tuple[str, ...] = ()
    """Files, folders, globs or fsspec URLs of .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, each also
    .gz, .zst, .xz or .bz2, and folders that `datasets` saved; `package:PATH` lies in Malmoi itself."""
    sources: tuple[SourceSettings, ...] = ()
    """Several sources with weights, in place of `input`."""
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    """What is taken out of the text."""


@dataclass(frozen=True)
class VocabularySettings:
    """How a tokenizer is trained."""

    vocab_size: int = 32000
    """Number of token ids, special tokens and byte pieces included."""
    sample_bytes: int = 100_000_000
    """Most text that the tokenizer is trained on, in UTF-8 bytes; a larger corpus is sampled by hash."""
    min_character_count: int = 10
    """Times a character that is no Hangul syllable must occur to get a token of its own; rarer ones are bytes."""


@dataclass(frozen=True)
class TokenizerSettings(VocabularySettings):
    """The tokenizer: trained on the corpus, or taken from a folder."""

    path: str | None = None
    """Folder of a trained tokenizer to use as it is; none: that of init_from, or else one trained on the corpus."""


@dataclass(frozen=True)
class ShardSettings:
    """How text becomes shards: the part held out, their size, and where the work is done."""

    held_out: float = 0.01
    """Share of documents, by hash of their text, that is never trained on."""
    shard_tokens: int = 268_435_456
    """Tokens at which a shard is closed and the next begun."""
    workers: int | None = None
    """Processes that encode, or jobs under engine slurm; none: one a core, or one job. The bytes written do not
    depend on it."""
    engine: Engine = "local"
    """Where the encoding runs: processes of this machine, a Dask cluster, or jobs of dask-jobqueue on Slurm."""
    scheduler: str | None = None
    """Address of the Dask scheduler, for engine dask."""
    shared_filesystem: SharedFilesystem = "auto"
    """Whether all nodes see one folder of shards: true: node 0 builds, and all must see it; else whoever is first."""


@dataclass(frozen=True)
class DataSettings(ShardSettings):
    """The shards: tokens on disk, and the part held out."""

    cache: str | None = None
    """Folder that shard folders are built in and shared from; none: `shards` in the run folder."""
    document_mask: bool = False
    """Keep attention inside a document and count positions from its beginning, as if each were read alone."""
    length_warmup: float = 0.0
    """Share of all steps, from the first, in which each sample is read as four of a quarter of its length, 0 to 1."""


@dataclass(frozen=True)
class ModelSettings:
    """The shape of the GPT-2. Defaults are GPT-2's smallest (124M with 50,257 tokens)."""

    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads a block; must divide n_embd."""
    n_embd: int = 768
    """Width of the residual stream."""
    block_size: int = 1024
    """Tokens in a sample, and the most that the model ever sees at once."""
    dropout: float = 0.0
    """Dropout of embeddings, attention and residuals alike, 0 to 1."""


@dataclass(frozen=True)
class DivergenceSettings:
    """What a run does when its loss or gradient goes wrong."""

    nonfinite_steps: int = 10
    """Updates in a row with a loss or gradient that is not finite, each of which is skipped, after which the run goes
    back to its newest checkpoint; 0: never. Those that only lower fp16's loss scale do not count."""
    spike_deviations: float = 0.0
    """Standard deviations above the mean of recent losses at which the run goes back too; 0: never."""
    spike_window: int = 100
    """Recent updates whose losses give that mean and deviation; none is a spike before so many."""
    rollbacks: int = 3
    """Times that a run goes back, each time passing over the samples that it saw since, before it stops for good."""


@dataclass(frozen=True)
class TrainSettings:
    """The loop: batch, length, learning rate, what is written and how often."""

    global_batch: int = 512
    """Samples an update, over all ranks and accumulation steps."""
    micro_batch: int | Literal["auto"] = 8
    """Samples a rank computes at once; must divide global_batch / ranks. auto: the most that its memory takes."""
    steps: int | None = None
    """Updates in all; none: as many as `epochs` gives."""
    epochs: float = 1.0
    """Passes over the training shards, where `steps` is none."""
    optimizer: OptimizerName = "adamw"
    """AdamW for all parameters; or Muon for the matrices of the blocks and AdamW for the rest, the embeddings at three
    times the learning rate."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up; wsd (warm-up, stable, decay) stays at the peak until it decays."""
    decay_share: float = 0.2
    """Share of all steps, at the end, over which schedule wsd falls in a line, 0 to 1."""
    final_learning_rate: float = 0.1
    """Learning rate at the last step, as a share of the peak; constant has none."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises in a line from 0 to its peak."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; biases and norms have none."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    epsilon: float = 1e-8
    """AdamW's term against division by zero."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; 0: no clipping."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the hardware has it, fp16 on older GPUs, else fp32."""
    attention: Attention = "sdpa"
    """Kernel of the attention: torch's fused ones; plain matrix products; or flash-attn's, where that is installed."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third slower."""
    compile: bool = False
    """Compile the blocks by `torch.compile`: up to a minute at first; needs a C++ compiler. Dropout then draws
    other masks."""
    seed: int = 42
    """Seed of initial weights, sample order and dropout."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: int = 250
    """Steps between two looks at the held-out part; also after the last step. 0: only then."""
    evaluate_tokens: int = 1_000_000
    """Most held-out tokens that one look during training reads; the last one reads all."""
    save_every: int = 250
    """Steps between two checkpoints; also after the last step. 0: only then."""
    keep_last: int = 2
    """Checkpoints kept; an older one goes only after the newer is whole."""
    keep_best: int = 0
    """Checkpoints kept besides for their held-out loss, of those whose step was evaluated."""
    asynchronous_save: bool = True
    """Write checkpoints while training goes on; it waits only for a copy of its state in the host's memory."""
    accept_changed_data: bool = False
    """Go on from a checkpoint although the shards are others than those it was trained on."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Accelerate's trackers that metrics go to, by name: tensorboard, wandb, trackio, mlflow, comet_ml, ..."""
    profile: tuple[int, ...] = ()
    """Steps, from 1, of which a torch profiler trace is written to `profile` in the run folder."""
    divergence: DivergenceSettings = field(default_factory=DivergenceSettings)
    """What a run does when its loss or gradient goes wrong."""


@dataclass(frozen=True)
class ParallelSettings:
    """How ranks share the work."""

    backend: BackendName = "auto"
    """Whole copies (single, ddp), DeepSpeed ZeRO stage 1 to 3, or PyTorch's FSDP2; auto: what the launcher asks for."""
    offload: bool = False
    """With ZeRO, keep the optimiser's state, and in stage 3 the weights too, in the host's memory."""
    hang_seconds: int = 1800
    """Seconds without an update or a look at held-out text after which a rank dumps its stacks and ends; 0: never."""


@dataclass(frozen=True)
class SamplingSettings:
    """How text is drawn from a model: the options of `transformers`' `generate`."""

    prompt: str = "이순신"
    """Text to go on from; a leading `<s>` is understood, since every prompt begins with it."""
    num_return_sequences: int = 3
    """Samples a prompt."""
    max_new_tokens: int = 100
    """Most tokens added to the prompt."""
    max_length: int | None = None
    """Most tokens in all, prompt included; where set, it counts instead of max_new_tokens."""
    min_new_tokens: int = 0
    """Fewest tokens added before the text may end."""
    do_sample: bool = True
    """Draw tokens by their probability; false: always the likeliest."""
    temperature: float = 1.0
    """Divides the logits: below 1 safer, above 1 wilder."""
    top_k: int = 50
    """Draw from the k likeliest tokens only; 0: all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this share of probability."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one; 0: none."""
    repetition_penalty: float = 1.0
    """Above 1, tokens already in the text become less likely."""
    no_repeat_ngram_size: int = 0
    """No run of this many tokens comes twice; 0: no such rule."""
    num_beams: int = 1
    """Beams of a beam search; 1: none."""
    length_penalty: float = 1.0
    """With beams, above 0 longer texts are preferred, below 0 shorter ones."""
    seed: int = 42
    """Seed set before each prompt, so that a prompt's samples do not depend on the others."""


@dataclass(frozen=True)
class RunSamplingSettings(SamplingSettings):
    """The samples of a run: those that it shows when it is finished, and one at each look at held-out text."""

    every_look: int = 40
    """Most tokens added to the prompt in the sample that each look at held-out text leaves in samples.jsonl; 0: none
    is drawn before the run is finished."""


@dataclass(frozen=True)
class RunSettings:
    """A whole run, from text to samples."""

    run: str = "runs/default"
    """Run folder: everything that the run writes."""
    init_from: str | None = None
    """Folder of a GPT-2 whose weights training begins from, ours or any in Hugging Face form, with its tokenizer unless
    tokenizer.path names another; none: random weights."""
    init_resize: bool = False
    """Let init_from's model get rows for tokens that its vocabulary lacks, and block_size as its context."""
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    """Which text is read."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """How text becomes tokens."""
    data: DataSettings = field(default_factory=DataSettings)
    """How tokens lie on disk."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The shape of the model."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """The loop."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How ranks share the work."""
    sampling: RunSamplingSettings = field(default_factory=RunSamplingSettings)
    """The samples that a run shows."""
