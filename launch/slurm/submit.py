"""Submission: the run's settings are frozen in its folder, and the job scripts written there and submitted."""

import time
from pathlib import Path

from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.launch.slurm.checks import check_cluster, check_data_is_named, check_request
from malmoi.launch.slurm.cluster import cancel, job_states, submit
from malmoi.launch.slurm.records import Submission, read_records, record_submission
from malmoi.launch.slurm.request import Request
from malmoi.launch.slurm.script import JOB_FOLDER, SETTINGS_FILE, ArrayJob, data_script, train_script
from malmoi.ranks import counted_ranks
from malmoi.train.finetune_result import finished_finetuning
from malmoi.train.run_dir import (
    FINETUNING_FIXED,
    FIXED,
    HYPERPARAMETERS,
    check_unchanged,
    finished_result,
    setting_changes,
)

TRAIN_SCRIPT, DATA_SCRIPT = "job.sh", "data_job.sh"


def submit_run(request: Request) -> Submission:
    """Check the request, freeze the settings in the run folder, and submit the job.

    Raises:
        UserError: the request is invalid, the cluster cannot run it, or Slurm refuses the job.
    """
    check_request(request)
    check_continues(request.run, request.settings)
    check_cluster(request)
    check_data_is_named(request)
    check_not_queued(request.run)
    settings = write_settings(request.run, request.settings)
    data = data_script(request, request.run, str(settings), ()) if request.options.data_job else None
    return submit_scripts(request, train_script(request, str(settings), ()), data)


def check_continues(run: Path, settings: RunSettings | FinetuneSettings) -> None:
    """Check that the job would train: the run folder holds no other run, and none that is done under other settings.

    Raises:
        UserError: it does.
    """
    is_finetuning = isinstance(settings, FinetuneSettings)
    check_unchanged(run, settings, FINETUNING_FIXED if is_finetuning else FIXED)
    finished = finished_finetuning(run) if is_finetuning else finished_result(run)
    changes = [change.text for change in setting_changes(run, settings) if change.name in HYPERPARAMETERS]
    if finished is not None and changes and finished.steps == settings.train.max_steps:
        raise UserError(
            f"{run}: all {finished.steps} steps are done, so this would train nothing: {'; '.join(changes)}; choose "
            "another --run, or raise train.max_steps"
        )


def check_not_queued(run: Path) -> None:
    """Check that every earlier job of this run has ended: two jobs must not train in one run folder.

    Raises:
        UserError: a job is pending, running, or about to be requeued.
    """
    for job in read_records(run).latest_jobs():
        for state in job_states(job):
            if not state.has_ended:
                raise UserError(
                    f"{run}: job {state.job} of this run is {state.state.lower()}; wait for it, scancel it, or choose "
                    "another --run"
                )


def write_settings(run: Path, settings: RunSettings | FinetuneSettings) -> Path:
    """Write `settings` into the run folder, so that later edits of a config do not change a job that waits."""
    folder = run / JOB_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SETTINGS_FILE
        file.write_text(settings_as_yaml(settings), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --run") from error
    return file


def submit_scripts(request: Request, train: str, data: str | None) -> Submission:
    """Write the job scripts beside the settings, submit them, and record the submission.

    Args:
        data: script of the job that prepares the data; none: there is no such job.

    Raises:
        UserError: Slurm refuses a job; none stays in the queue then.
    """
    folder = request.run / JOB_FOLDER
    (folder / TRAIN_SCRIPT).write_text(train, encoding="utf-8")
    data_job = None
    dependency: tuple[str, ...] = ()
    if data is not None:
        (folder / DATA_SCRIPT).write_text(data, encoding="utf-8")
        data_job = submit(folder / DATA_SCRIPT)
        # Without the second option, training would stay in the queue forever if the preparation fails.
        dependency = (f"--dependency=afterok:{data_job}", "--kill-on-invalid-dep=yes")
    try:
        job = submit(folder / TRAIN_SCRIPT, *dependency)
    except UserError:
        if data_job is not None:
            cancel([data_job])
        raise
    submission = Submission(job, data_job, time.time())
    record_submission(request.run, submission)
    return submission


def submission_summary(request: Request, submission: Submission, array: ArrayJob | None = None) -> str:
    """Return what `submit` prints: the job's id, and the commands that follow and cancel it."""
    options = request.options
    where = f"{options.nodes} x {counted_ranks(request.ranks_per_node)}"
    what = f"{array.runs} runs, each on {where}" if array is not None else f"{request.run.name} on {where}"
    jobs = [submission.job] if submission.data_job is None else [submission.job, submission.data_job]
    lines = [f"job {submission.job}: {what}, at most {options.time} an allocation"]
    if submission.data_job is not None:
        lines.append(f"job {submission.data_job} prepares the data before it")
    log = f"{submission.job}_0" if array is not None else submission.job
    lines += [
        f"  malmoi slurm status {request.run}",
        f"  tail -F {request.run / JOB_FOLDER}/job-{log}.log",
        f"  scancel {' '.join(jobs)}",
    ]
    return "\n".join(lines)
