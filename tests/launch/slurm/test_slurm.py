"""Job scripts as text, and what is refused before it is submitted; tests/launch/cluster runs them."""

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmoi.configs.commands import SlurmOptions
from malmoi.configs.finetune import FinetuneSettings, FinetuneTrainSettings
from malmoi.configs.parser import parse_settings, settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.launch.cli import main
from malmoi.launch.slurm.checks import check_data_is_named, check_request, check_shared_filesystem, file_system
from malmoi.launch.slurm.cluster import GPUS, time_limit_seconds
from malmoi.launch.slurm.request import Request, parse_request
from malmoi.launch.slurm.script import DATA_TEMPLATE, TRAIN_TEMPLATE, ArrayJob, JobTemplate, data_script, train_script
from malmoi.launch.slurm.status import run_status
from malmoi.launch.slurm.sweep import combinations, parse_grid, sweep_requests
from malmoi.train.finetune_result import FinetuneResult, write_finetuning
from malmoi.train.metrics.records import StepMetrics, TaskValMetrics, append_metrics
from malmoi.train.run_dir import RunResult, settings_as_json, write_result
from tests.launching import run_malmoi

SHELLCHECK = str(Path(sys.executable).parent / "shellcheck")
EVERYTHING = (
    *("--nodes", "2", "--gpus_per_node", "8", "--gpu_type", "a100", "--cpus_per_rank", "4", "--memory", "100G"),
    *("--exclusive", "--time", "04:00:00", "--partition", "gpu", "--account", "us", "--qos", "high"),
    *("--constraint", "ib&nvlink", "--mail", "me@here.kr", "--job_name", "korean", "--sbatch", "nice=100", "hold"),
    *("--module", "cuda/12", "gcc", "--setup", "export HF_HOME=/scratch/hf", "--network_interface", "ib0"),
    *("--signal_lead_seconds", "600", "--retries", "5", "--chain"),
)


def in_process(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a `malmoi slurm` command line, without the second that a process takes."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["slurm", *words])
    return code, out.getvalue(), err.getvalue()


def rendered(*words: str) -> str:
    code, out, err = in_process("render", *words)
    assert code == 0, err
    return out


def swept(*words: str) -> str:
    """The script that `malmoi slurm sweep` queues."""
    asked = request(*words)
    runs = combinations(parse_grid(asked.options.grid))
    return train_script(asked, "", (), ArrayJob(len(runs), asked.options.max_concurrent))


def refused(*words: str) -> str:
    code, out, err = in_process(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


def request(*words: str) -> Request:
    return parse_request(["--config", "gpt2-small", *words], "malmoi slurm render", "")


def shellcheck(script: str) -> str:
    return subprocess.run([SHELLCHECK, "-"], input=script, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--gpus_per_node", "0", "--run", "runs/with blank and 'quote'"),
        EVERYTHING,
        ("--conda", "env"),
        ("--pyxis", "nvcr.io#nvidia/pytorch:25.01-py3", "--mount", "/data", "/a:/b"),
    ],
    ids=["plain", "awkward folder", "everything", "conda", "pyxis"],
)
def test_shellcheck_finds_nothing_in_what_is_rendered(words: tuple[str, ...]) -> None:
    script = rendered("--config", "gpt2-small", *words)
    assert "@@" not in script
    assert shellcheck(script) == ""
    assert shellcheck(rendered("--config", "gpt2-small", "--data_job", *words)) == ""
    assert shellcheck(swept("--grid", "train.seed=1,2,3", "--max_concurrent", "2")) == ""
    assert "SC" in shellcheck("#!/bin/bash\necho $1\n"), "the check itself works"


def test_each_option_appears_in_the_script(tmp_path: Path) -> None:
    lines = rendered(
        "--config", "gpt2-small", "--run", str(tmp_path), *EVERYTHING, "--train.max_steps", "7"
    ).splitlines()
    for line in (
        f"#SBATCH --chdir={Path.cwd()}",
        "#SBATCH --job-name=korean",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=a100:8",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=100G",
        "#SBATCH --exclusive",
        "#SBATCH --time=04:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=us",
        "#SBATCH --qos=high",
        "#SBATCH --constraint=ib&nvlink",
        "#SBATCH --mail-user=me@here.kr",
        "#SBATCH --mail-type=END,FAIL,REQUEUE",
        "#SBATCH --nice=100",
        "#SBATCH --hold",
        f"#SBATCH --output={tmp_path}/slurm/job-%j.log",
        "#SBATCH --signal=B:USR1@600",
        "#SBATCH --no-requeue",
        "module load cuda/12 gcc",
        "export HF_HOME=/scratch/hf",
        "export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0",
        "retries=5",
        "signal_lead_seconds=600",
        "chain=true",
        'command=(python -m malmoi.train --config "$settings" --run "$run" --train.max_steps 7)',
        "settings=gpt2-small",
        f"run={tmp_path}",
    ):
        assert line in lines, line


def test_a_job_without_gpus_asks_for_none_and_is_requeued_by_itself() -> None:
    script = rendered("--config", "gpt2-small", "--gpus_per_node", "0", "--ranks_per_node", "4")
    assert "gpus" not in script
    assert "#SBATCH --ntasks-per-node=4\n" in script and "#SBATCH --requeue\n" in script


def test_the_data_job_is_rendered_if_requested() -> None:
    words = ("--config", "gpt2-small", "--run", "r", "--data_cpus", "7", "--corpus.input", "['a b']")
    script = rendered(*words, "--data_job")
    command = """python -m malmoi.launch prepare --config "$settings" --run "$run" --corpus.input '['"'"'a b'"'"']'"""
    assert f'command=({command} --data.workers "${{SLURM_CPUS_PER_TASK:-1}}")\n' in script
    assert "#SBATCH --cpus-per-task=7\n" in script and "gpus-per-node" not in script
    assert "malmoi.launch prepare" not in rendered(*words)


def test_environments_are_activated_as_asked(tmp_path: Path) -> None:
    image = tmp_path / "malmoi.sif"
    image.touch()
    own = rendered("--config", "gpt2-small")
    assert f"source {sys.prefix}/bin/activate\n" in own
    conda = rendered("--config", "gpt2-small", "--conda", "korean")
    assert "conda activate korean\n" in conda and "bin/activate" not in conda
    box = rendered("--config", "gpt2-small", "--apptainer", str(image), "--mount", "/data", "--run", str(tmp_path))
    assert f"command=(apptainer exec --nv --bind {tmp_path},/data {image} python -m malmoi.train" in box
    pyxis = rendered("--config", "gpt2-small", "--pyxis", "nv/torch:1", "--mount", "/data", "--run", str(tmp_path))
    assert f"--container-image=nv/torch:1 --container-mounts={tmp_path}:{tmp_path},/data:/data bash -c" in pyxis
    data = data_script(request("--apptainer", str(image)), tmp_path, "", ())
    assert "--nv" not in data and f"{image} python -m malmoi.launch prepare" in data


def test_a_clusters_options_come_from_a_file_and_the_command_line_goes_over_them(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text('partition: gpu\naccount: us\ntime: "12:00:00"\nmodule: [cuda, gcc]\n', encoding="utf-8")
    script = rendered("--cluster", str(file), "--config", "gpt2-small", "--account", "them")
    assert "#SBATCH --partition=gpu\n" in script and "#SBATCH --account=them\n" in script
    assert "#SBATCH --time=12:00:00\n" in script and "module load cuda gcc\n" in script
    file.write_text("partitoin: gpu\n", encoding="utf-8")
    assert f"{file}:1: unknown setting 'partitoin'; did you mean 'partition'?" in refused(
        "render", "--cluster", str(file)
    )


def test_an_array_picks_its_run_by_its_number() -> None:
    script = swept("--run", "/s", "--grid", "train.seed=1,2", "data.val_fraction=0.1,0.2,0.3")
    assert "#SBATCH --array=0-5\n" in script
    assert "/slurm/job-%A_%a.log\n" in script
    assert 'run=/s/$(printf %03d "$SLURM_ARRAY_TASK_ID")\n' in script


def test_the_job_finds_the_checkpoints_where_the_settings_put_them(tmp_path: Path) -> None:
    assert 'checkpoints="$run"/checkpoints\n' in rendered("--config", "gpt2-small")
    assert "checkpoints=/c\n" in rendered("--config", "gpt2-small", "--checkpoint.dir", "file:///c")
    assert "checkpoints=s3://b/c\n" in rendered("--config", "gpt2-small", "--checkpoint.dir", "s3://b/c")
    words = ("--run", "/s", "--grid", "train.seed=1,2", "--checkpoint.dir", "/c")
    assert 'checkpoints=/c/$(printf %03d "$SLURM_ARRAY_TASK_ID")\n' in swept(*words)
    asked = request(*words)
    each = sweep_requests(asked, combinations(parse_grid(asked.options.grid)))
    assert [one.settings.checkpoint.dir for one in each] == ["/c/000", "/c/001"], "no run shares its checkpoints"
    assert shellcheck(swept(*words)) == ""


def test_ones_own_template_is_filled_in(tmp_path: Path) -> None:
    template = tmp_path / "mine.sh"
    template.write_text("#!/bin/bash\n@@{sbatch}\n# mine\n@@{command}\n", encoding="utf-8")
    assert "# mine\npython -m malmoi.train" in rendered("--config", "gpt2-small", "--template", str(template))
    template.write_text("@@{no_such}", encoding="utf-8")
    assert "cannot be filled in" in refused("render", "--config", "gpt2-small", "--template", str(template))


def test_templates_are_valid_bash() -> None:
    for template in (TRAIN_TEMPLATE, DATA_TEMPLATE):
        names = JobTemplate(template.read_text(encoding="utf-8")).get_identifiers()
        filled = JobTemplate(template.read_text(encoding="utf-8")).substitute(dict.fromkeys(names, "true"))
        assert subprocess.run(["bash", "-n"], input=filled, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--nodes", "3"),
            "train.global_batch_size 512 is no multiple of train.micro_batch_size 16 x 3 ranks (3 nodes x 1) = 48",
        ),
        (("--nodes", "0"), "nodes 0: give a whole number of 1 or more"),
        (("--gpus_per_node", "2", "--ranks_per_node", "4"), "more ranks than the 2 GPUs"),
        (("--time", "4"), "--time 4 is no longer than --signal_lead_seconds 300"),
        (("--time", "tomorrow"), "--time tomorrow: write DAYS-HOURS"),
        (("--data_time", "abc"), "--data_time abc: write DAYS-HOURS"),
        (("--partitoin", "gpu"), "unknown setting '--partitoin'; did you mean '--partition'?"),
        (("--train.max_setps", "3"), "unknown setting '--train.max_setps'; did you mean '--train.max_steps'?"),
        (("--train.max_steps", "many"), "train.max_steps"),
        (("--apptainer", "/no/image.sif"), "/no/image.sif: no such image"),
        (("--venv", "/no/venv"), "/no/venv: not a virtual environment, since it has no bin/activate"),
        (("--template", "/no/template.sh"), "/no/template.sh: cannot be read"),
        (("--grid", "train.seed=1,2"), "--grid is an option of `malmoi slurm sweep`"),
    ],
)
def test_bad_use_is_refused_before_anything_is_rendered(words: tuple[str, ...], said: str) -> None:
    assert said in refused("render", "--config", "gpt2-small", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.sed=1,2",), "--grid train.sed=1,2: unknown setting 'train.sed'; did you mean 'train.seed'?"),
        (("train.seed",), "write NAME=VALUE,VALUE"),
        (("train.seed=1,1",), "a value is given twice"),
        (("train.seed=1,2", "--max_concurrent", "1", "--chain"), "--max_concurrent 1: Slurm does not apply the limit"),
    ],
)
def test_a_grid_that_makes_no_sweep_is_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refused("sweep", "--config", "gpt2-small", "--run", str(tmp_path / "s"), "--grid", *words)


def test_without_slurm_submit_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no scontrol here: run this where" in refused(
        "submit", "--config", "gpt2-small", "--run", str(tmp_path / "r")
    )
    assert not (tmp_path / "r").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config", "gpt2-small"), "corpus.input is empty"),
        (("--finetune", "--task.train", "rows.jsonl"), "--init_from"),
        (("--finetune", "--init_from", "model"), "--task.train"),
    ],
)
def test_a_job_without_anything_to_train_on_does_not_wait_in_the_queue(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_data_is_named(parse_request(words, "", ""))
    check_data_is_named(parse_request(["--config", "gpt2-small", "--corpus.input", "[my_text]"], "", ""))
    check_data_is_named(parse_request(["--finetune", "--init_from", "m", "--task.train", "rows.jsonl"], "", ""))


def test_a_config_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  max_setps: 3\n", encoding="utf-8")
    assert f"{file}:2: unknown setting 'train.max_setps'" in refused("submit", "--config", str(file))


def test_a_run_folder_on_a_local_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = request("--run", str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"a local disk that other nodes cannot see.*--shared_filesystem true"):
        check_shared_filesystem(request("--run", "/dev/shm/run"))
    check_shared_filesystem(request("--run", "/dev/shm/run", "--shared_filesystem", "true"))
    with pytest.raises(UserError, match="--shared_filesystem true"):
        check_shared_filesystem(request("--run", str(tmp_path / "run"), "--shared_filesystem", "false"))
    # No test can mount a network disk: only what the kernel reports of it is replaced.
    mounts = {here.run: ("nfs4", "/home"), Path("/c"): ("ext4", "/")}
    monkeypatch.setattr("malmoi.launch.slurm.checks.file_system", mounts.__getitem__)
    check_shared_filesystem(here)
    with pytest.raises(UserError, match=r"^/c: is on / \(ext4\).*choose a --checkpoint.dir on a shared file system"):
        check_shared_filesystem(request("--run", str(tmp_path / "run"), "--checkpoint.dir", "/c"))


def test_the_nearest_mount_tells_the_file_system() -> None:
    assert file_system(Path("/dev/shm/deep/in/there"))[1] == "/dev/shm"
    assert file_system(Path("/proc/1"))[0] == "proc"


@given(days=st.integers(0, 99), hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_time_limits_are_read_as_slurm_reads_them(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert time_limit_seconds(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}", "--time") == total
    assert time_limit_seconds(f"{hours}:{minutes}:{seconds}", "--time") == total - days * 86400
    assert time_limit_seconds(f"{minutes}:{seconds}", "--time") == minutes * 60 + seconds
    assert time_limit_seconds(str(minutes), "--time") == minutes * 60
    assert time_limit_seconds(f"{days}-{hours}", "--time") == (days * 24 + hours) * 3600


@pytest.mark.parametrize(
    ("resources", "found"),
    [
        ("gpu:2", [("", 2)]),
        ("gpu:a100:8(S:0-1),nvme:1", [("a100", 8)]),
        ("gpu:a100:4,gpu:v100:2", [("a100", 4), ("v100", 2)]),
        ("(null)", []),
    ],
)
def test_a_nodes_gpus_are_read_from_its_resources(resources: str, found: list[tuple[str, int]]) -> None:
    assert [(match["kind"] or "", int(match["count"])) for match in GPUS.finditer(resources)] == found


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_a_grid_gives_every_combination_once(sizes: list[int]) -> None:
    names = ("train.seed", "optim.betas", "model.n_layer")
    words = [f"{name}={','.join(map(str, range(size)))}" for name, size in zip(names, sizes, strict=False)]
    runs = combinations(parse_grid(words))
    count = 1
    for size in sizes:
        count *= size
    assert len({tuple(run.values.items()) for run in runs}) == len(runs) == count
    assert [run.folder for run in runs] == [f"{number:03d}" for number in range(count)]


def test_commas_in_brackets_do_not_separate_values() -> None:
    assert parse_grid(["corpus.input=[a,b],[c]"]) == {"corpus.input": ["[a,b]", "[c]"]}


def test_help_lists_every_option() -> None:
    done = run_malmoi("slurm", "submit", "--help")
    assert done.returncode == 0
    for name in SlurmOptions.__dataclass_fields__:
        assert f"--{name}" in done.stdout
    assert "every setting of `malmoi train`" in " ".join(done.stdout.split())


def test_the_settings_that_a_job_reads_are_those_of_the_command_line(tmp_path: Path) -> None:
    from malmoi.launch.slurm.submit import write_settings

    asked = request("--run", str(tmp_path / "run"), "--train.seed", "7")
    file = write_settings(asked.run, asked.settings)
    assert file.read_text(encoding="utf-8") == settings_as_yaml(asked.settings)
    from malmoi.configs.parser import parse_settings

    assert parse_settings(RunSettings, ["--config", str(file)], "", "") == asked.settings
    assert asked.overrides == ("--train.seed", "7")
    check_request(asked)


TUNED = ("--finetune", "--init_from", "m", "--task.train", "a.jsonl", "--train.micro_batch_size", "8")


def test_a_fine_tuning_is_rendered_as_its_own_command(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("dropout: 0.2\n", encoding="utf-8")
    words = (*TUNED, "--config", str(file), "--run", str(tmp_path), "--task.fields", "question", "answer")
    script = rendered(*words, "--gpus_per_node", "4")
    command = (
        'command=(python -m malmoi.launch finetune --config "$settings" --run "$run" --init_from m '
        "--task.train a.jsonl --train.micro_batch_size 8 --task.fields question answer)"
    )
    assert command in script.splitlines()
    assert shellcheck(script) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", *TUNED, "--data_job"), "--finetune: fine-tuning has no corpus to prepare"),
        (("sweep", *TUNED, "--grid", "train.seed=1,2"), "--finetune: fine-tuning has no corpus to prepare"),
        (("render", *TUNED, "--corpus.input", "x"), "unknown setting '--corpus.input'"),
        (
            ("render", *TUNED, "--train.micro_batch_size", "5"),
            "train.global_batch_size 32 is no multiple of train.micro_batch_size 5",
        ),
    ],
)
def test_what_fine_tuning_does_not_have_is_refused(words: tuple[str, ...], said: str) -> None:
    assert said in refused(*words)


def test_the_settings_of_a_fine_tuning_come_back_as_they_were(tmp_path: Path) -> None:
    from malmoi.configs.parser import parse_settings
    from malmoi.launch.slurm.submit import write_settings

    asked = parse_request([*TUNED, "--run", str(tmp_path / "run")], "malmoi slurm render", "")
    file = write_settings(asked.run, asked.settings)
    assert parse_settings(FinetuneSettings, ["--config", str(file)], "", "") == asked.settings
    check_request(asked)


def test_status_of_fine_tuning_shows_step_and_end(tmp_path: Path) -> None:
    settings = FinetuneSettings(run=str(tmp_path), init_from="m", train=FinetuneTrainSettings(max_steps=8))
    (tmp_path / "config.yaml").write_text(settings_as_yaml(settings), encoding="utf-8")
    logged = StepMetrics(
        step=4, tokens_seen=128, loss=0.5, lr=1e-3, grad_norm=0.5, skipped_steps=0, tokens_per_sec=64.0, mfu=0.4,
        data_wait_frac=0.01, checkpoint_frac=0.0, eval_frac=0.0, slowest_rank=0, slowest_rank_lag=0.0, peak_mib=512.0,
    )  # fmt: skip
    append_metrics(tmp_path, logged)
    append_metrics(tmp_path, TaskValMetrics(4, 128, 0.6, {"accuracy": 0.5}))
    status = run_status(tmp_path)
    assert (status.step, status.steps, status.bits_per_byte, status.is_finished) == (4, 8, None, False)
    write_finetuning(tmp_path, FinetuneResult({}, 8, 8, 64, ("0", "1"), ()))
    assert run_status(tmp_path).is_finished


def finished(folder: Path, *words: str) -> None:
    """Have a run's folder hold a finished run of one step with these settings."""
    given = ["--config", "demo", "--model.n_layer=12", *words, f"--run={folder}", "--train.max_steps=1"]
    settings = parse_settings(RunSettings, given, "", "")
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "config.yaml").write_text(settings_as_yaml(settings), encoding="utf-8")
    write_result(folder, RunResult(settings_as_json(settings), 1, 1, None, None, "", ()))


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (("--optim.lr=1e-4",), "000: all 1 steps are done, so this would train nothing: optim.lr was 0.0001 and is"),
        (("--model.n_layer=2",), "000: holds another run: model.n_layer was 2 and is now 12"),
    ],
)
def test_a_job_that_would_train_nothing_is_refused_before_the_queue(
    tmp_path: Path, before: tuple[str, ...], said: str
) -> None:
    finished(tmp_path / "000", *before)
    flags = ("--config", "demo", "--train.max_steps=1", "--model.n_layer=12", "--run")
    grid = ("--grid", "optim.lr=1e-3,2e-3")
    assert said in refused("sweep", *flags, str(tmp_path), *grid)
    assert said in refused("submit", *flags, str(tmp_path / "000"))
    assert [each.name for each in tmp_path.iterdir()] == ["000"]


def test_status_of_a_run_that_was_never_submitted_says_so(tmp_path: Path) -> None:
    append_metrics(tmp_path, StepMetrics(1, 64, 3.5, 1e-4, 1.0, 0, 9.0, 0.1, 0.0, 0.0, 0.0, 0, 0.0, 9.0))
    code, out, _ = in_process("status", str(tmp_path))
    assert code == 0
    assert out.startswith("trained here, and never submitted to Slurm\n")


def test_a_command_of_slurm_without_a_cluster_is_one_line_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "scontrol"
    command.write_text(
        "#!/bin/sh\necho scontrol: error: fetch_config: DNS SRV lookup failed >&2\n"
        "echo scontrol: fatal: Could not establish a configuration source >&2\nexit 1\n",
        encoding="utf-8",
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    said = refused("submit", "--config", "demo", "--run", str(tmp_path / "run"))
    assert said.endswith(
        "scontrol finds no cluster here: run this where the cluster's jobs are submitted, on a login node\n"
    )


def test_a_misspelled_config_is_recognized() -> None:
    assert "did you mean '--config'?" in refused("render", "--confg", "demo")
