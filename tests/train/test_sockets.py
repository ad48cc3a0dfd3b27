"""What users add from outside the package, by `toy_plugin.py`, keeps the promises of what is built in."""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

import malmoi
from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.checksums import file_record
from malmoi.configs.data import ExecutorName
from malmoi.configs.model import ArchitectureName
from malmoi.configs.optim import OptimizerName, ScheduleName
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings, TaskName
from malmoi.configs.train import BackendName
from malmoi.errors import UserError
from malmoi.train.metrics.trackers import require_trackers
from malmoi.train.pretrain import pretrain
from malmoi.train.pretrain_run import build_pretraining
from malmoi.train.run_dir import prepare_run
from tests.launching import ROOT, as_flags, environment, metrics, step_losses, with_settings
from tests.time_limits import seconds
from tests.train.ranks import run_many

OPTIMIZER_AND_MORE = {
    "optim__name": "momentum_sgd",
    "optim__lr": 0.5,
    "optim__max_grad_norm": 0.0,
    "schedule__name": "sawtooth",
    "schedule__min_lr_ratio": 0.0,
    "log__trackers": "[toy_plugin:LinesTracker]",
}
MODEL_AND_MORE = {"model__architecture": "toy_llama", "objective": "second_half", "parallel__backend": "half_step"}
KILLED_AT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with the plugin in it."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(ROOT / "tests" / "train" / "toy_plugin.py", folder)
    return folder


@pytest.fixture(scope="module")
def config(tiny_settings: RunSettings, folder: Path) -> Path:
    file = folder / "tiny.yaml"
    settings = with_settings(tiny_settings, model__dropout=0.1, checkpoint__every=5, plugins=("toy_plugin",))
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    return file


def flags_of(config: Path, run: Path, settings: Mapping[str, Any]) -> list[str]:
    """The command line of a run, whose toy tracker and toy storage are beside its folder."""
    more = dict(settings)
    if "log__trackers" in settings:
        arguments = {"toy_plugin:LinesTracker": {"file": str(run.with_suffix(".lines"))}}
        more |= {"log__tracker_args": json.dumps(arguments), "checkpoint__dir": f"toy://{run.with_suffix('.tars')}"}
    return list(as_flags(config, run=run, **more))


@pytest.fixture(scope="module")
def undisturbed(config: Path, folder: Path) -> Path:
    """A folder of two finished runs, `optimizer` and `model`."""
    runs = folder / "undisturbed"
    runs.mkdir()
    lists = [
        flags_of(config, runs / "optimizer", OPTIMIZER_AND_MORE),
        flags_of(config, runs / "model", MODEL_AND_MORE),
    ]
    run_many(1, lists, folder)
    return runs


@pytest.fixture(scope="module")
def resumed(config: Path, folder: Path) -> Path:
    """The same runs, ended by SIGKILL in the middle and resumed."""
    runs = folder / "resumed"
    runs.mkdir()
    lists = []
    for name, settings in (("optimizer", OPTIMIZER_AND_MORE), ("model", MODEL_AND_MORE)):
        flags = flags_of(config, runs / name, settings)
        killed = subprocess.run(
            [sys.executable, "-m", "malmoi.train", *flags],
            cwd=folder,
            env={**environment(), "TOY_KILL_AT": str(KILLED_AT)},
            capture_output=True,
            text=True,
            timeout=seconds(120),
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert max(line["step"] for line in metrics(runs / name)) == KILLED_AT
        lists.append(flags)
    run_many(1, lists, folder)
    return runs


def without_measurements(run: Path) -> list[dict[str, Any]]:
    """The run's metrics in the order in which they were logged, without events and what differs from run to run."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("perf/", "mem/"))}
        for line in metrics(run)
        if "event" not in line
    ]


def checkpoint_bytes(run: Path, name: str, step: int = 20) -> bytes:
    """A file of a checkpoint, in the run folder or in the toy storage."""
    tar = run.with_suffix(".tars") / f"step-{step:06d}.tar"
    if not tar.is_file():
        return (run / "checkpoints" / f"step-{step:06d}" / name).read_bytes()
    with tarfile.open(tar) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def resumed_from(run: Path) -> list[str]:
    return [line["text"] for line in metrics(run) if line.get("event") == "resume"]


@pytest.mark.parametrize("name", ["optimizer", "model"])
def test_a_run_of_toys_that_was_killed_resumes_to_the_same_bytes(undisturbed: Path, resumed: Path, name: str) -> None:
    ours, theirs = resumed / name, undisturbed / name
    (event,) = resumed_from(ours)
    assert event.startswith(("resuming from step 10 ", "resuming from step 5 "))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert checkpoint_bytes(ours, file) == checkpoint_bytes(theirs, file), file
    assert (ours / "model" / "model.safetensors").read_bytes() == (theirs / "model" / "model.safetensors").read_bytes()
    assert without_measurements(ours) == without_measurements(theirs)


def test_an_optimizer_from_outside_steps_and_its_own_state_is_in_the_checkpoint(undisturbed: Path) -> None:
    tensors = load_bytes(checkpoint_bytes(undisturbed / "optimizer", "optimizer.safetensors"), undisturbed)
    assert {name.partition(".")[0] for name in tensors} == {"velocity", "updates"}
    assert tensors["updates.transformer.ln_f.weight"] == 20
    assert tensors["velocity.transformer.wte.weight"].abs().sum() > 0
    losses = step_losses(undisturbed / "optimizer")
    assert losses[-1] < losses[0] - 0.5


def load_bytes(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "tensors.safetensors"
    file.write_bytes(content)
    return load_file(file)


def test_a_schedule_from_outside_gives_the_learning_rates(undisturbed: Path) -> None:
    rates = [line["train/lr"] for line in metrics(undisturbed / "optimizer") if "train/lr" in line]
    warmup = [0.5 * (step + 1) / 4 for step in range(4)]
    assert rates == pytest.approx([*warmup, *(0.5 * (1 - 0.125 * (step % 5)) for step in range(4, 20))])


def test_a_model_from_outside_is_exported_as_a_stock_class(undisturbed: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(undisturbed / "model" / "model")
    assert type(model) is LlamaForCausalLM
    result = json.loads((undisturbed / "model" / "result.json").read_text(encoding="utf-8"))
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(result["samples"]) == 3


def test_a_task_and_a_backend_from_outside_are_those_that_train(undisturbed: Path, config: Path, folder: Path) -> None:
    """The first loss is that of half the tokens; the second one of a step at half the learning rate."""
    plain = {"model__architecture": "toy_llama", "train__max_steps": 2, "eval__every": 0}
    runs = {
        "task": {**plain, "objective": "second_half"},
        "backend": {**plain, "parallel__backend": "half_step"},
        "neither": plain,
    }
    run_many(1, [flags_of(config, folder / "each" / name, settings) for name, settings in runs.items()], folder)
    task, backend, neither = (step_losses(folder / "each" / name) for name in runs)
    both = step_losses(undisturbed / "model")
    assert task[0] != neither[0]
    assert backend[0] == neither[0] and backend[1] != neither[1]
    assert both[0] == task[0] and both[1] not in (task[1], backend[1])


def test_a_tracker_from_outside_gets_the_runs_name_its_configuration_and_every_value(
    undisturbed: Path, resumed: Path
) -> None:
    first, *logged = lines_of(undisturbed / "optimizer.lines")
    assert first["run"] == "optimizer"
    assert first["config"]["optim.name"] == "momentum_sgd"
    assert first["config"]["model.n_layer"] == 2
    expected = [
        (line["step"], {f"{name}": value for name, value in line.items() if name != "step"})
        for line in metrics(undisturbed / "optimizer")
    ]
    texts = [line for line in logged if {"sample", "event/finish"} & line["values"].keys()]
    assert [(line["step"], line["values"]) for line in logged if line not in texts] == expected
    samples = lines_of(undisturbed / "optimizer" / "samples.jsonl")
    *drawn, finish = texts
    assert [(line["step"], line["values"]) for line in drawn] == [
        (line["step"], {"sample": line["text"]}) for line in samples if line["step"] in (10, 20)
    ]
    assert finish["step"] == 20 and finish["values"]["event/finish"].startswith("trained to step 20")
    # A tracker cannot forget the steps that a killed run did twice: the later ones are those of the undisturbed run.
    ours, theirs = (last_values(runs / "optimizer.lines") for runs in (resumed, undisturbed))
    assert ours == theirs


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def last_values(file: Path) -> dict[tuple[int, str], float | str]:
    """The last value of each name and step, without what differs from run to run."""
    return {
        (line["step"], name): value
        for line in lines_of(file)
        if "values" in line
        for name, value in line["values"].items()
        if not name.startswith(("perf/", "mem/", "event/"))
    }


def test_what_hooks_log_are_records_of_their_own_in_a_fixed_order(undisturbed: Path) -> None:
    """After the step's own record, in the order in which hooks were added, before the evaluation."""
    lines = metrics(undisturbed / "optimizer")
    for step in range(1, 21):
        names = [next(name for name in line if "/" in name) for line in lines if line["step"] == step]
        expected = ["train/loss"] + ["toy/norm"] * (step % 2 == 0) + ["toy/samples"] * (step % 4 == 0)
        assert names == expected + ["val/loss"] * (step in (10, 20)), step
    samples = [line for line in lines if "toy/samples" in line]
    assert samples[0] == {"step": 4, "tokens_seen": 4 * 8 * 32, "toy/samples": 32.0}


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (ArchitectureName, malmoi.MODELS),
        (OptimizerName, malmoi.OPTIMIZERS),
        (ScheduleName, malmoi.SCHEDULES),
        (BackendName, malmoi.BACKENDS),
        (TaskName, malmoi.TASKS),
        (ExecutorName, malmoi.EXECUTORS),
    ],
    ids=["models", "optimizers", "schedules", "backends", "tasks", "executors"],
)
def test_the_names_that_help_shows_are_those_of_the_registry(names: Any, registry: Mapping[str, Any]) -> None:
    literal, other = get_args(names)
    assert other is str
    assert [name for name in get_args(literal) if name != "auto"] == list(registry)


@pytest.mark.parametrize(
    ("setting", "registry"),
    [
        ("model.architecture", malmoi.MODELS),
        ("optim.name", malmoi.OPTIMIZERS),
        ("schedule.name", malmoi.SCHEDULES),
        ("parallel.backend", malmoi.BACKENDS),
        ("objective", malmoi.TASKS),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones_before_text_is_prepared(
    tiny_settings: RunSettings, tmp_path: Path, setting: str, registry: Mapping[str, Any]
) -> None:
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"), **{setting.replace(".", "__"): "adamv"})
    with pytest.raises(UserError, match=rf"{setting} adamv: no entry of that name.* Known: {', '.join(registry)}; "):
        pretrain(settings)
    assert not (tmp_path / "run").exists()


def test_an_unknown_scheme_of_checkpoints_is_refused_before_text_is_prepared(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"), checkpoint__dir="nowhere://run")
    with pytest.raises(UserError, match=f"checkpoint.dir nowhere://run: .*known schemes: {', '.join(malmoi.STORAGES)}"):
        pretrain(settings)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_unknown_or_not_installed_is_named() -> None:
    require_trackers(("tensorboard",))
    with pytest.raises(UserError, match=r"log\.trackers tensorbord: no such tracker; did you mean 'tensorboard'\?"):
        require_trackers(("tensorbord",))
    with pytest.raises(UserError, match=r"log\.trackers clearml: its package is not installed; `pip install clearml`"):
        require_trackers(("tensorboard", "clearml"))
    with pytest.raises(UserError, match=r"log\.trackers nowhere:Lines: cannot be imported"):
        require_trackers(("nowhere:Lines",))
    with pytest.raises(UserError, match=r"log\.trackers json:JSONDecoder: is not a subclass of .*GeneralTracker"):
        require_trackers(("json:JSONDecoder",))


@pytest.fixture(scope="module")
def on_backends(config: Path, folder: Path) -> Path:
    """Finished runs of the toy model and optimizer on two ranks, by backend."""
    runs = folder / "backends"
    lists = [flags_of(config, runs / backend, ON_BACKENDS | asked_of(backend)) for backend in BACKENDS]
    run_many(2, lists, folder)
    return runs


BACKENDS = [name for name in malmoi.BACKENDS if name != "single"]
ON_BACKENDS: dict[str, Any] = {
    "model__architecture": "toy_llama",
    **{name: OPTIMIZER_AND_MORE[name] for name in ("optim__name", "optim__lr", "optim__max_grad_norm")},
}


def asked_of(backend: str) -> dict[str, str]:
    return {"parallel__backend": backend}


def test_a_model_and_an_optimizer_from_outside_give_the_same_curve_on_every_backend(on_backends: Path) -> None:
    reference = step_losses(on_backends / "ddp")
    assert reference[-1] < reference[0] - 0.5
    for backend in BACKENDS:
        losses = step_losses(on_backends / backend)
        assert max(abs(one - other) for one, other in zip(losses, reference, strict=True)) < 5e-6, backend


@pytest.mark.soak
def test_a_model_and_an_optimizer_from_outside_resume_bit_for_bit_on_every_backend(
    on_backends: Path, config: Path, folder: Path
) -> None:
    runs = folder / "backends-resumed"
    lists = []
    for backend in BACKENDS:
        unfinished = shutil.ignore_patterns("step-000020", "model", "result.json")
        shutil.copytree(on_backends / backend, runs / backend, ignore=unfinished)
        lists.append(flags_of(config, runs / backend, ON_BACKENDS | asked_of(backend)))
    run_many(2, lists, folder)
    for backend in BACKENDS:
        (event,) = resumed_from(runs / backend)
        assert event.startswith("resuming from step 15 "), backend
        assert step_losses(runs / backend) == step_losses(on_backends / backend), backend
        for file in ("model.safetensors", "optimizer.safetensors"):
            ours, theirs = (checkpoint_bytes(each / backend, file) for each in (runs, on_backends))
            assert ours == theirs, (backend, file)


@pytest.fixture
def remote(tiny_settings: RunSettings, finished_run: Path, tmp_path: Path) -> Iterator[RunSettings]:
    """Settings of a run whose checkpoints are in fsspec's file system in memory."""
    name = tmp_path.name
    yield with_settings(tiny_settings, run=str(tmp_path / "run"), checkpoint__dir=f"memory://{name}/checkpoints")
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def test_a_run_resumes_from_a_remote_storage_past_a_half_written_checkpoint(
    remote: RunSettings, finished_run: Path
) -> None:
    run, root = Path(remote.run), remote.checkpoint.dir
    assert root is not None
    assert pretrain(remote) == 0
    assert not (run / "checkpoints").exists()
    memory = fsspec.filesystem("memory")
    folder = root.removeprefix("memory:/")
    for file in ("model.safetensors", "optimizer.safetensors"):
        local = (finished_run / "checkpoints" / "step-000020" / file).read_bytes()
        assert memory.cat_file(f"{folder}/step-000020/{file}") == local
    # As a kill in the middle of the last upload leaves it.
    memory.rm_file(f"{folder}/step-000020/state.json")
    memory.pipe_file(f"{folder}/step-000020/model.safetensors", b"half")
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    assert pretrain(remote) == 0
    assert resumed_from(run) == [f"resuming from step 10 ({root}/step-000010)"]
    for file in ("model.safetensors", "optimizer.safetensors"):
        local = (finished_run / "checkpoints" / "step-000020" / file).read_bytes()
        assert memory.cat_file(f"{folder}/step-000020/{file}") == local
    assert without_measurements(run) == without_measurements(finished_run)


@pytest.mark.parametrize("key", ["momentum_buffer", "surprise"])
def test_a_checkpoint_with_optimizer_state_that_the_optimizer_does_not_have_is_refused(
    tiny_settings: RunSettings, finished_run: Path, tmp_path: Path, key: str
) -> None:
    """None of it is dropped in silence."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("model", "result.json"))
    for checkpoint in (run / "checkpoints").iterdir():
        file = checkpoint / "optimizer.safetensors"
        tensors = load_file(file)
        save_file({**tensors, f"{key}.transformer.ln_f.weight": torch.ones(32)}, file)
        state = parse_checked_json((checkpoint / "state.json").read_bytes())
        state["files"] = [asdict(file_record(checkpoint / record["name"])) for record in state["files"]]
        (checkpoint / "state.json").write_bytes(checked_json(state))
    message = rf"the checkpoint holds {key}\.transformer\.ln_f\.weight, which the model and optimizer of this run"
    with pytest.raises(UserError, match=message):
        pretrain(with_settings(tiny_settings, run=str(run)))


def test_a_plugin_that_is_not_there_is_named(tiny_settings: RunSettings, tmp_path: Path) -> None:
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"), plugins=("toy_plugin_of_nobody",))
    with pytest.raises(UserError, match=f"plugins: no module 'toy_plugin_of_nobody' in {Path.cwd()}"):
        pretrain(settings)


@pytest.mark.parametrize("name", ["step", "train/loss", "val/loss", "event"])
def test_a_value_of_ones_own_cannot_take_the_name_of_a_metric_that_every_run_has(
    tiny_settings: RunSettings, tmp_path: Path, name: str
) -> None:
    """A line of metrics.jsonl is known by its names."""
    settings = with_settings(tiny_settings, run=str(tmp_path / "run"))
    trainer = build_pretraining(settings, prepare_run(settings)).trainer
    with pytest.raises(ValueError, match=f"{name}: every run has a metric of that name"):
        trainer.log(name, 1.0)
    trainer.log(f"my/{name}", 1.0)
    assert metrics(tmp_path / "run") == [{"step": 0, "tokens_seen": 0, f"my/{name}": 1.0}]
