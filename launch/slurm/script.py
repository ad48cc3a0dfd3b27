"""Job scripts: a template of plain bash, filled in with the options of the job."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from malmoi.configs.commands import SlurmOptions
from malmoi.configs.finetune import FinetuneSettings
from malmoi.errors import UserError
from malmoi.launch.slurm.request import Request

TEMPLATES = Path(__file__).parent.parent / "templates"
TRAIN_TEMPLATE, DATA_TEMPLATE = TEMPLATES / "train_job.sh", TEMPLATES / "data_job.sh"
JOB_FOLDER = "slurm"
"""Folder in the run folder for job scripts and logs."""
SETTINGS_FILE = "settings.yaml"
RUN_DIGITS = 3


class JobTemplate(Template):
    """`@@{name}` is filled in; everything else stays, the shell's own `$` and `@` included."""

    delimiter = "@@"


@dataclass(frozen=True)
class ArrayJob:
    """A job array, whose tasks train the numbered run folders of a sweep."""

    runs: int
    max_concurrent: int | None


def train_script(request: Request, settings_file: str, flags: Sequence[str], array: ArrayJob | None = None) -> str:
    """Return the script of the job that trains.

    Args:
        settings_file: value of `--config`; ignored for an array, whose runs hold their settings.
        flags: words after `--config` and `--run`.

    Raises:
        UserError: the template cannot be read, or has a placeholder that is not known.
    """
    options = request.options
    run, settings = shlex.quote(str(request.run)), shlex.quote(settings_file)
    folder = request.checkpoint_folder
    checkpoints = '"$run"/checkpoints' if folder is None else shlex.quote(str(folder))
    if array is not None:
        number = f'$(printf %0{RUN_DIGITS}d "$SLURM_ARRAY_TASK_ID")'
        run, settings = f"{run}/{number}", f'"$run/{JOB_FOLDER}/{SETTINGS_FILE}"'
        checkpoints = checkpoints if folder is None else f"{checkpoints}/{number}"
    config = ["--config", '"$settings"'] if settings_file or array is not None else []
    module = ["malmoi.launch", "finetune"] if isinstance(request.settings, FinetuneSettings) else ["malmoi.train"]
    words = ["python", "-m", *module, *config, "--run", '"$run"', *map(shlex.quote, flags)]
    values = {
        "sbatch": _sbatch_lines(_train_resources(request, array)),
        "run": run,
        "settings": settings,
        "checkpoints": checkpoints,
        "retries": str(options.retries),
        "signal_lead_seconds": str(options.signal_lead_seconds),
        "chain": str(options.chain).lower(),
        "environment": _environment(options),
        "command": " ".join([*_launcher(request), *words]),
        "network": _network(options),
        "srun_options": _srun_options(request),
    }
    return _filled(Path(options.template) if options.template else TRAIN_TEMPLATE, values)


def data_script(request: Request, run: Path, settings_file: str, flags: Sequence[str]) -> str:
    """Return the script of the job that prepares the data of the run folder `run`.

    Raises:
        UserError: the template cannot be read, or has a placeholder that is not known.
    """
    config = ["--config", '"$settings"'] if settings_file else []
    workers = ["--data.workers", '"${SLURM_CPUS_PER_TASK:-1}"'] if request.pre_training.data.workers is None else []
    words = ["python", "-m", "malmoi.launch", "prepare", *config, "--run", '"$run"', *map(shlex.quote, flags), *workers]
    values = {
        "sbatch": _sbatch_lines(_data_resources(request)),
        "run": shlex.quote(str(run)),
        "settings": shlex.quote(settings_file),
        "environment": _environment(request.options),
        "command": " ".join([*_launcher(request, gpus=False), *words]),
        "srun_options": _srun_options(request),
    }
    return _filled(DATA_TEMPLATE, values)


def _filled(template: Path, values: dict[str, str]) -> str:
    try:
        return JobTemplate(template.read_text(encoding="utf-8")).substitute(values)
    except OSError as error:
        raise UserError(f"{template}: cannot be read ({error.strerror}); name another --template") from error
    except (KeyError, ValueError) as error:
        known = ", ".join(f"@@{{{name}}}" for name in values)
        raise UserError(f"{template}: cannot be filled in ({error}); it may contain {known}") from error


def _train_resources(request: Request, array: ArrayJob | None) -> list[tuple[str, str | None]]:
    options = request.options
    gpus = f"{options.gpu_type}:{options.gpus_per_node}" if options.gpu_type else str(options.gpus_per_node)
    entries: list[tuple[str, str | None]] = [
        ("job-name", job_name(request)),
        ("nodes", str(options.nodes)),
        ("ntasks-per-node", str(request.ranks_per_node)),
        # Per node, not per task: ranks on one node must see each other's GPUs for peer-to-peer transfers.
        ("gpus-per-node", gpus if options.gpus_per_node else None),
        ("cpus-per-task", str(options.cpus_per_rank) if options.cpus_per_rank else None),
        ("mem", options.memory),
        ("time", options.time),
        *_account_and_partition(options, options.partition),
        ("constraint", options.constraint),
    ]
    if array is not None:
        limit = f"%{array.max_concurrent}" if array.max_concurrent else ""
        entries.append(("array", f"0-{array.runs - 1}{limit}"))
    entries += [
        ("output", _log_file(request, "job", is_array=array is not None)),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{options.signal_lead_seconds}"),
    ]
    lines: list[tuple[str, str | None]] = [entry for entry in entries if entry[1] is not None]
    lines.append(("no-requeue" if options.chain else "requeue", None))
    if options.exclusive:
        lines.append(("exclusive", None))
    return lines + [_option(line) for line in options.sbatch]


def _data_resources(request: Request) -> list[tuple[str, str | None]]:
    options = request.options
    entries: list[tuple[str, str | None]] = [
        ("job-name", f"{job_name(request)}-data"),
        ("nodes", "1"),
        ("ntasks", "1"),
        ("cpus-per-task", str(options.data_cpus)),
        ("mem", options.data_memory),
        ("time", options.data_time),
        *_account_and_partition(options, options.data_partition or options.partition),
        ("output", _log_file(request, "data", is_array=False)),
        ("open-mode", "append"),
    ]
    return [entry for entry in entries if entry[1] is not None] + [("requeue", None)]


def _account_and_partition(options: SlurmOptions, partition: str | None) -> list[tuple[str, str | None]]:
    return [
        ("partition", partition),
        ("account", options.account),
        ("qos", options.qos),
        ("mail-user", options.mail),
        ("mail-type", "END,FAIL,REQUEUE" if options.mail else None),
    ]


def _option(line: str) -> tuple[str, str | None]:
    name, equals, value = line.removeprefix("--").partition("=")
    return name, value if equals else None


def _sbatch_lines(entries: Sequence[tuple[str, str | None]]) -> str:
    given = [("chdir", str(Path.cwd())), *entries]
    return "\n".join(
        f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={_sbatch_value(value)}" for name, value in given
    )


def _sbatch_value(value: str) -> str:
    # sbatch removes quotes and ends a value at a blank, as a shell does.
    return f'"{value}"' if any(sign in value for sign in " \t#;'") else value


def _log_file(request: Request, kind: str, is_array: bool) -> str:
    folder = str(request.run / JOB_FOLDER).replace("%", "%%")
    return f"{folder}/{kind}-{'%A_%a' if is_array else '%j'}.log"


def job_name(request: Request) -> str:
    """Return the job's name in the queue."""
    return request.options.job_name or f"malmoi-{request.run.name}"


def _environment(options: SlurmOptions) -> str:
    lines: list[str] = []
    if options.module:
        lines.append(f"module load {' '.join(map(shlex.quote, options.module))}")
    if options.conda:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(options.conda)}"]
    venv = options.venv or _current_venv(options)
    if venv:
        activate = Path(venv).absolute() / "bin" / "activate"
        lines += ["# shellcheck source=/dev/null", f"source {shlex.quote(str(activate))}"]
    return "\n".join([*lines, *options.setup])


def _current_venv(options: SlurmOptions) -> str | None:
    """Return the virtual environment of this process, where the options name no other environment."""
    is_given = options.conda or options.apptainer or options.pyxis
    return None if is_given or sys.prefix == sys.base_prefix else sys.prefix


def _mounts(request: Request) -> list[str]:
    return [str(request.run), *request.options.mount]


def _launcher(request: Request, gpus: bool = True) -> list[str]:
    """Return the words that run a command in an Apptainer image, before the command; none without an image."""
    if not request.options.apptainer:
        return []
    mounts = ",".join(_mounts(request))
    with_gpus = ["--nv"] if gpus and request.options.gpus_per_node else []
    image = shlex.quote(str(Path(request.options.apptainer).absolute()))
    return ["apptainer", "exec", *with_gpus, "--bind", shlex.quote(mounts), image]


def _srun_options(request: Request) -> str:
    """Return srun's options for a Pyxis image, each followed by a blank; empty without an image."""
    if not request.options.pyxis:
        return ""
    mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in _mounts(request))
    words = [f"--container-image={request.options.pyxis}", f"--container-mounts={mounts}"]
    return "".join(f"{shlex.quote(word)} " for word in words)


def _network(options: SlurmOptions) -> str:
    if options.network_interface is None:
        return ""
    interface = shlex.quote(options.network_interface)
    return f"export NCCL_SOCKET_IFNAME={interface} GLOO_SOCKET_IFNAME={interface}\n"
