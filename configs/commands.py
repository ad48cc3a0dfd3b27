"""The options of the `malmoi` commands other than those that train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from malmoi.configs.corpus import CorpusSettings, TextSettings, VocabularySettings
from malmoi.configs.data import ShardSettings, SharedFilesystem
from malmoi.configs.outputs import SamplingSettings
from malmoi.configs.ranges import ClosedUnitInterval, FiniteNonNegative, NonNegativeInt, PositiveInt
from malmoi.configs.renamed import unknown_setting
from malmoi.configs.validate import check_settings
from malmoi.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")
OpeningUnit = Literal["sentence", "line"]
SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class PluginOptions:
    """Code from outside the package."""

    plugins: tuple[str, ...] = ()
    """Python modules imported first, which register readers, models, ... of your own."""


@dataclass(frozen=True)
class TokenizerOptions(CorpusSettings, VocabularySettings, PluginOptions):
    """Train a tokenizer on text."""

    out: str = ""
    """Folder to write: tokenizer.json, vocab.json, merges.txt. Required."""


@dataclass(frozen=True)
class PrepareOptions(CorpusSettings, ShardSettings, PluginOptions):
    """Turn text into token shards. With --config, the settings of a run are used instead."""

    tokenizer: str = ""
    """Folder of a trained tokenizer. Required."""
    out: str = ""
    """Folder in which the shard folder is built; a shard folder is named by the fingerprint of its inputs.
    Required."""


@dataclass(frozen=True)
class VerifyOptions:
    """Verify that a folder is complete and undamaged: malmoi verify DIR."""

    path: str = ""
    """A shard folder, a checkpoint or a model."""
    tokenizer: str | None = None
    """Folder of the tokenizer that the shards must have been made with; null: `tokenizer` near the shards, if any."""


@dataclass(frozen=True)
class InspectOptions:
    """Show what shards hold: malmoi inspect DIR."""

    path: str = ""
    """A shard folder, or a folder that holds one."""
    tokenizer: str | None = None
    """Folder of the tokenizer that the shards were made with; null: `tokenizer` near the shards."""
    document: NonNegativeInt | None = None
    """Index of a document to decode and show, from 0."""
    split: SplitName = "train"
    """Split that the document is in."""


@dataclass(frozen=True)
class GenerateOptions(SamplingSettings, PluginOptions):
    """Sample text from a model folder."""

    model: str = ""
    """Model folder. Required."""
    prompts_file: str | None = None
    """File of prompts, one a line, in place of --prompt."""
    batch_size: PositiveInt = 1
    """Prompts in a batch; when sampling, above 1 a prompt's samples depend on the other prompts of its batch."""
    stop: tuple[str, ...] = ()
    """Strings that end a sample; they are cut off."""
    logprobs: bool = False
    """Add the natural log-probability of each new token under the model itself, before temperature and top_k."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class EvaluateOptions(TextSettings, PluginOptions):
    """Compute loss, perplexity and bits per byte of one or more models."""

    model: tuple[str, ...] = ()
    """Model folders. Required."""
    data: str = ""
    """A shard folder, of which the validation split is read, or a file or folder of text. Required."""
    batch_size: PositiveInt = 8
    """Windows in a batch."""
    stride: PositiveInt | None = None
    """Tokens from one window to the next, up to the context length; null: the context length. A smaller stride gives
    each token more context and takes longer."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class FewshotOptions(PluginOptions):
    """Evaluate a model on tasks with none, one or several examples in the prompt."""

    model: str = ""
    """Folder of any causal language model. Required."""
    tasks: tuple[str, ...] = ()
    """Names of tasks or groups, patterns such as 'arithmetic_*', `all`, or paths of task files (.yaml).
    Required."""
    shots: tuple[NonNegativeInt, ...] = (0, 1, 5)
    """Numbers of examples in the prompt."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the choice of examples; several give a mean and its standard error."""
    out: str = ""
    """Folder that gets one JSON file a task. Required."""
    limit: PositiveInt | None = None
    """Documents a task at most; null: all."""
    batch_size: PositiveInt = 8
    """Prompts in a batch."""
    log_samples: bool = False
    """Write each prompt with the answer and log-likelihoods to TASK.samples.jsonl in the folder."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class QualityOptions(SamplingSettings, TextSettings, PluginOptions):
    """Measure the diversity of a model's samples, and how much of them is copied from its training text."""

    model: str = ""
    """Model folder; its tokenizer counts tokens. Required."""
    prompts_file: str | None = None
    """File of prompts, one a line, in place of --prompt."""
    texts: str | None = None
    """File or folder of texts to measure in place of samples from the model."""
    data: str | None = None
    """Shard folder that the model was trained on, in which copied text is searched; null: no search."""
    batch_size: PositiveInt = 1
    """Prompts in a batch."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class JudgeMakeOptions(TextSettings, PluginOptions):
    """Make the texts of a blind test: continuations by people, by models, and deliberately bad ones as a control."""

    model: tuple[str, ...] = ()
    """Folders of the models to test. Required."""
    data: str = ""
    """A shard folder, of which the validation split is read, or a file or folder of text that no model was trained
    on. Required."""
    out: str = ""
    """Folder that gets the test; must not hold one. Required."""
    texts: PositiveInt = 25
    """Texts by people, and as many by each model."""
    control_texts: NonNegativeInt = 10
    """Deliberately bad texts; 0: none, and no comparison with them."""
    control_model: str | None = None
    """Model folder that writes them; null: the first of --model."""
    control_temperature: FiniteNonNegative = 2.0
    """Sampling temperature of the control, above 0; top_k and top_p are off."""
    opening: OpeningUnit = "sentence"
    """What a model continues: a document's first sentence, or its first line, where that is a title."""
    target_chars: PositiveInt = 400
    """Characters of a continuation, to within 10%; fewer where the person wrote fewer."""
    min_chars: PositiveInt = 100
    """Characters that a document must have after its opening."""
    temperature: FiniteNonNegative = 1.0
    """Sampling temperature of the models, above 0."""
    top_k: NonNegativeInt = 50
    """Sample from the k most probable tokens only; 0: all."""
    top_p: ClosedUnitInterval = 1.0
    """Sample from the smallest set of tokens with this total probability."""
    candidates: PositiveInt = 4
    """Continuations sampled for an opening; the first one that is as long as the person's is used."""
    seed: NonNegativeInt = 42
    """Seed of the choice of documents and of the continuations, below 2^31."""


@dataclass(frozen=True)
class JudgeServeOptions:
    """Show the texts of a blind test to raters: malmoi judge serve DIR."""

    path: str = ""
    """Folder of `malmoi judge make`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all networks of this machine."""
    port: NonNegativeInt = 7860
    """Port to listen on; 0: any free one."""


@dataclass(frozen=True)
class JudgeResultsOptions:
    """Compute the results of a blind test: malmoi judge results DIR."""

    path: str = ""
    """Folder of `malmoi judge make`."""
    out: str | None = None
    """Page to write; null: results.html in the folder."""
    min_control_accuracy: ClosedUnitInterval = 0.0
    """Fraction of the control texts that a rater must have recognized as machine-written to count; 0: all raters
    count."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class ReportOptions:
    """Write RUN/report.html: malmoi report RUN [RUN ...]."""

    run: tuple[str, ...] = ()
    """Run folders; several are shown side by side."""
    fewshot: tuple[str, ...] = ()
    """Result folders of `malmoi fewshot`, shown besides those named `fewshot` in the run folders."""
    out: str | None = None
    """File to write; null: report.html in the first run folder."""


@dataclass(frozen=True)
class DoctorOptions:
    """Show what this machine can do, and what to install where it cannot."""

    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True)
class SlurmOptions:
    """A Slurm job that trains a run. Every setting of `malmoi train` can be given as well."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    gpus_per_node: NonNegativeInt = 1
    """GPUs a node; 0: train on CPUs."""
    gpu_type: str | None = None
    """GPU type as the cluster names it, such as a100; null: any."""
    ranks_per_node: PositiveInt | None = None
    """Ranks a node; null: one a GPU, or one without GPUs."""
    cpus_per_rank: PositiveInt | None = None
    """Cores a rank; null: the cluster's default, often one."""
    memory: str | None = None
    """Memory a node, such as 64G; null: the partition's default, 0: all of it."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    time: str = "24:00:00"
    """Time limit of an allocation, as [DAYS-]HOURS:MINUTES:SECONDS or minutes; training resumes in the next one."""
    partition: str | None = None
    """Partition; null: the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    mail: str | None = None
    """E-mail address that is notified of the job's end and failure."""
    job_name: str | None = None
    """Name in the queue; null: malmoi and the run folder's name."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch in their long form without the dashes, such as nice=100."""
    module: tuple[str, ...] = ()
    """Environment modules to load, in order."""
    venv: str | None = None
    """Virtual environment to activate; null: the one that this command runs in, unless --conda or a container is
    given."""
    conda: str | None = None
    """Conda environment to activate, by name or path."""
    apptainer: str | None = None
    """Apptainer image that the ranks run in."""
    pyxis: str | None = None
    """Container image that Slurm's Pyxis plugin runs the ranks in; must hold bash and Malmoi."""
    mount: tuple[str, ...] = ()
    """Folders that the container sees, as HOST or HOST:CONTAINER; the run folder is always mounted."""
    setup: tuple[str, ...] = ()
    """Lines of bash to run before training, such as export HF_HOME=/scratch/hf."""
    network_interface: str | None = None
    """Interface that NCCL and gloo use, such as ib0; null: their choice."""
    signal_lead_seconds: PositiveInt = 300
    """Seconds before the time limit at which the run is signaled to save; must be longer than a save takes."""
    retries: NonNegativeInt = 3
    """Consecutive restarts without a new checkpoint before the job gives up."""
    chain: bool = False
    """Continue in a chain of jobs, each queued when the one before starts, instead of requeueing one job."""
    data_job: bool = False
    """Prepare tokenizer and shards in a job without GPUs first; training waits for it."""
    data_cpus: PositiveInt = 16
    """Cores of the data job."""
    data_memory: str | None = None
    """Memory of the data job, such as 64G; null: the partition's default."""
    data_time: str = "24:00:00"
    """Time limit of the data job."""
    data_partition: str | None = None
    """Partition of the data job; null: the same as training's."""
    grid: tuple[str, ...] = ()
    """Settings to sweep over, each as NAME=VALUE,VALUE,...: one run for every combination."""
    max_concurrent: PositiveInt | None = None
    """Runs of a sweep that train at the same time at most; null: no limit."""
    shared_filesystem: SharedFilesystem = "auto"
    """Whether every node sees the run folder; auto: judged by the type of its file system."""
    template: str | None = None
    """Job script template to use in place of launch/templates/train_job.sh."""


@dataclass(frozen=True)
class SlurmStatusOptions:
    """Show the state of a run in the queue and in training: malmoi slurm status RUN."""

    run: str = ""
    """Run folder, or the folder of a sweep."""
    json: bool = False
    """Print one JSON object and nothing else."""


def with_overrides(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """Return `settings` with the values of `overrides`, by name, checked as those of a command line are.

    Raises:
        UserError: a setting is unknown, or a value is not of its type or out of its range.
    """
    known = [entry.name for entry in fields(settings)]
    for name in overrides:
        if name not in known:
            raise UserError(unknown_setting(name, known))
    changed = replace(settings, **overrides)
    check_settings(changed)
    return changed
