"""Submitting: what a job needs is written into the run folder, frozen, and the job handed to the queue."""

import time
from pathlib import Path

from configs.command_line import settings_as_yaml
from configs.errors import BadInput
from configs.finetune_settings import FinetuneSettings
from configs.schema import RunSettings
from launch.slurm_checks import check_cluster, check_request
from launch.slurm_cluster import cancel, job_states, submit
from launch.slurm_records import Submission, read_records, record_submission
from launch.slurm_request import Request
from launch.slurm_script import JOB_FOLDER, SETTINGS_FILE, ArrayJob, data_script, train_script

TRAIN_SCRIPT, DATA_SCRIPT = "job.sh", "data_job.sh"


def submit_run(request: Request) -> Submission:
    """Check, freeze the settings in the run folder, and queue the job.

    Raises:
        BadInput: something is wrong that can be told before the queue, or Slurm refuses the job.
    """
    check_request(request)
    check_cluster(request)
    check_not_queued(request.run)
    settings = write_settings(request.run, request.settings)
    data = data_script(request, request.run, str(settings), ()) if request.options.data_job else None
    return queue(request, train_script(request, str(settings), ()), data)


def check_not_queued(run: Path) -> None:
    """See that every job of this run has ended: two would want the same run folder.

    Raises:
        BadInput: one waits, runs, or is about to be requeued.
    """
    for job in read_records(run).latest_jobs():
        for state in job_states(job):
            if not state.has_ended:
                raise BadInput(
                    f"{run}: job {state.job} of this run is {state.state.lower()}; wait for it, scancel it, or choose "
                    "another --run"
                )


def write_settings(run: Path, settings: RunSettings | FinetuneSettings) -> Path:
    """Freeze `settings` in the run folder, where the job reads them however long it waits."""
    folder = run / JOB_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SETTINGS_FILE
        file.write_text(settings_as_yaml(settings), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); choose another --run") from error
    return file


def queue(request: Request, train: str, data: str | None) -> Submission:
    """Write the scripts beside the settings and hand them to the queue.

    Args:
        data: of the job that prepares the data; none: there is no such job.

    Raises:
        BadInput: Slurm refuses a job; none is left in the queue then.
    """
    folder = request.run / JOB_FOLDER
    (folder / TRAIN_SCRIPT).write_text(train, encoding="utf-8")
    data_job = None
    dependency: tuple[str, ...] = ()
    if data is not None:
        (folder / DATA_SCRIPT).write_text(data, encoding="utf-8")
        data_job = submit(folder / DATA_SCRIPT)
        # Without the second, a failed preparation would leave training in the queue for ever.
        dependency = (f"--dependency=afterok:{data_job}", "--kill-on-invalid-dep=yes")
    try:
        job = submit(folder / TRAIN_SCRIPT, *dependency)
    except BadInput:
        if data_job is not None:
            cancel([data_job])
        raise
    submission = Submission(job, data_job, time.time())
    record_submission(request.run, submission)
    return submission


def how_to_follow(request: Request, submission: Submission, array: ArrayJob | None = None) -> str:
    """What `submit` prints: the id, and the commands that follow and stop the job."""
    options = request.options
    where = f"{options.nodes} x {request.ranks_per_node} ranks"
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
