"""The options of each `malmoi` command that is not a whole run."""

from dataclasses import dataclass

from configs.schema import (
    CorpusSettings,
    OpeningUnit,
    SamplingSettings,
    ShardSettings,
    SharedFilesystem,
    TextSettings,
    VocabularySettings,
)


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
    batch: int = 1
    """Prompts generated at once; when sampling, above 1 a prompt's samples depend on the others of its batch."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are cut off."""
    logprobs: bool = False
    """Add the natural log-probability of each new token under the model itself, before temperature and top_k."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class EvaluateOptions(TextSettings):
    """Loss, perplexity and bits per byte of a model, or of several in one table."""

    model: tuple[str, ...] = ()
    """Model folders."""
    data: str = ""
    """A shard folder (its held-out part is scored), or a file or folder of text."""
    batch: int = 8
    """Windows scored at once."""
    stride: int | None = None
    """Tokens from one window to the next; below the context, tokens have more context. None: the context."""
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
class QualityOptions(SamplingSettings, TextSettings):
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
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class JudgeMakeOptions(TextSettings):
    """Make the texts of a blind test: some by people, some by models, some bad on purpose."""

    model: tuple[str, ...] = ()
    """Folders of the models to test."""
    data: str = ""
    """A shard folder (its held-out part is read), or a file or folder of text that no model was trained on."""
    out: str = ""
    """Folder that gets the test; must not hold one."""
    texts: int = 25
    """Texts by people, and as many by each model."""
    control: int = 10
    """Texts that are bad on purpose; 0: none, and no comparison with them."""
    control_model: str | None = None
    """Model folder that writes those; none: the first of --model."""
    control_temperature: float = 2.0
    """Temperature at which it does, without top_k and top_p."""
    opening: OpeningUnit = "sentence"
    """What a model goes on from: a document's first sentence, or its first line, where that is a title."""
    length: int = 400
    """Characters of a continuation to within a tenth; fewer where the person wrote fewer."""
    shortest: int = 100
    """Fewest characters of a document after its opening; others are not used."""
    temperature: float = 1.0
    """Divides the logits of the models: below 1 safer, above 1 wilder."""
    top_k: int = 50
    """The models draw from the k likeliest tokens only; 0: all."""
    top_p: float = 1.0
    """The models draw from the likeliest tokens that hold this share of probability."""
    tries: int = 4
    """Continuations drawn of an opening at once; the first that is as long as the person's is taken."""
    seed: int = 42
    """Seed of the choice of documents and of the continuations."""


@dataclass(frozen=True)
class JudgeServeOptions:
    """Show the texts of a blind test to raters: malmoi judge serve DIR."""

    path: str = ""
    """Folder of `malmoi judge make`."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every network that this machine is in."""
    port: int = 7860
    """Port to listen at."""


@dataclass(frozen=True)
class JudgeResultsOptions:
    """What the raters of a blind test found out: malmoi judge results DIR."""

    path: str = ""
    """Folder of `malmoi judge make`."""
    out: str | None = None
    """File of the page to write; none: results.html in the folder."""
    least_control: float = 0.0
    """Share of the texts bad on purpose that a rater must have found out to count; 0: all raters count."""
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


@dataclass(frozen=True)
class SlurmOptions:
    """A Slurm job that trains a run. Every setting of `malmoi train` may stand beside these."""

    nodes: int = 1
    """Machines that train together."""
    gpus_per_node: int = 1
    """GPUs of each; 0: train on CPUs."""
    gpu_type: str | None = None
    """Kind of GPU as the cluster calls it, such as a100; none: any."""
    ranks_per_node: int | None = None
    """Processes a node; none: one a GPU, or one where there is none."""
    cpus_per_rank: int | None = None
    """Cores a process; none: what Slurm gives by itself, often one."""
    memory: str | None = None
    """Memory a node, such as 64G; none: the partition's default, 0: all of it."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    time: str = "24:00:00"
    """Most time an allocation takes, as [DAYS-]HOURS:MINUTES:SECONDS or minutes; training goes on in the next one."""
    partition: str | None = None
    """Partition; none: the cluster's default."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    mail: str | None = None
    """E-mail address that hears of the job's end and failure."""
    job_name: str | None = None
    """Name in the queue; none: malmoi and the run folder's name."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch in their long form without the dashes, such as nice=100."""
    module: tuple[str, ...] = ()
    """Modules to load, in order."""
    venv: str | None = None
    """Virtual environment to activate; none: the one that this command runs in, unless --conda or a container is."""
    conda: str | None = None
    """Conda environment to activate, by name or path."""
    apptainer: str | None = None
    """Apptainer image that the ranks run in."""
    pyxis: str | None = None
    """Container image that Slurm's Pyxis plugin runs the ranks in; must hold bash and Malmoi."""
    mount: tuple[str, ...] = ()
    """Folders that the container sees, as HERE or HERE:THERE; the run folder's is among them always."""
    setup: tuple[str, ...] = ()
    """Lines of bash before training, such as export HF_HOME=/scratch/hf."""
    network_interface: str | None = None
    """Interface that NCCL and gloo talk over, such as ib0; none: they choose."""
    warning_seconds: int = 300
    """Seconds ahead of the time limit at which the run is told to save; must be more than a save takes."""
    retries: int = 3
    """Times in a row that a job starts again although the start before brought no new checkpoint."""
    until_done: bool = False
    """Go on in jobs of their own, each queued when the one before begins, in place of requeueing one job."""
    data_job: bool = False
    """Prepare tokenizer and shards in a job without GPUs first; training waits for it."""
    data_cpus: int = 16
    """Cores of the data job."""
    data_memory: str | None = None
    """Memory of the data job, such as 64G; none: the partition's default."""
    data_time: str = "24:00:00"
    """Time limit of the data job."""
    data_partition: str | None = None
    """Partition of the data job; none: the same."""
    grid: tuple[str, ...] = ()
    """Settings to sweep over, each as NAME=VALUE,VALUE,...: one run for every combination."""
    at_once: int | None = None
    """Most runs of a sweep that train at the same time; none: as many as find room."""
    shared_disk: SharedFilesystem = "auto"
    """Whether every node sees the run folder; auto: by the kind of its file system."""
    template: str | None = None
    """Job script to fill in, in place of launch/templates/train_job.sh."""


@dataclass(frozen=True)
class SlurmStatusOptions:
    """Where a run stands, in the queue and in training: malmoi slurm status RUN."""

    run: str = ""
    """Run folder, or the folder of a sweep."""
    json: bool = False
    """Print one JSON object and nothing else."""
