"""Trackers get the run's name, its configuration and every metric, as real back ends that need no network show."""

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError
from malmoi.train.metrics.records import read_metrics, tracked_values
from malmoi.train.metrics.sample_log import read_eval_samples
from malmoi.train.metrics.trackers import CUT, PROJECT, MLflowWithTexts, flat_config, require_trackers
from tests.launching import as_flags, environment, run_malmoi, two_ranks, with_settings
from tests.time_limits import seconds, wait_until

INSTALLED = [name for name in ("wandb", "mlflow", "trackio") if find_spec(name) is not None]
STEP_NAMES = {
    *("train/loss", "train/lr", "train/grad_norm", "train/skipped_steps", "perf/tokens_per_sec", "perf/mfu"),
    *("perf/data_wait_frac", "perf/checkpoint_frac", "perf/eval_frac", "perf/slowest_rank", "perf/slowest_rank_lag"),
    *("mem/peak_mib", "tokens_seen"),
}
VAL_NAMES = {"val/loss", "val/ppl", "val/bpb", "val/tokens"}
NAME = "한국어 run-7"


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(package not in INSTALLED, reason=f"{package} is not installed")


class Listener:
    """A proxy that counts who asks it for a connection, and connects nobody."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(200))

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class TrackedRun:
    """A finished run, and the folder that its trackers wrote to."""

    run: Path
    folder: Path
    asked: list[bytes] = field(default_factory=list)
    """Attempts to reach the network."""

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration by dotted name."""
        return flat_config(yaml.safe_load((self.run / "config.yaml").read_text(encoding="utf-8")))

    def points(self) -> dict[str, dict[int, float]]:
        """Return what is in metrics.jsonl: for each metric its values by step."""
        metrics = read_metrics(self.run)
        points: dict[str, dict[int, float]] = {}
        for record in (*metrics.steps, *metrics.evaluations):
            for name, value in tracked_values(record).items():
                points.setdefault(name, {})[record.step] = value
        return points


@pytest.fixture(scope="module")
def settings(tiny_settings: RunSettings) -> RunSettings:
    return with_settings(tiny_settings, train__max_steps=6, eval__every=3, checkpoint__every=0, generate__prompt="")


@pytest.fixture(scope="module")
def tracked(settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackedRun]:
    """A run of `malmoi train` with every tracker that is installed, where nothing can be reached."""
    folder = tmp_path_factory.mktemp("tracked")
    run = folder / NAME
    chosen = with_settings(
        settings,
        run=str(run),
        log__trackers=("tensorboard", *INSTALLED),
        log__tracker_args={
            "tensorboard": {"filename_suffix": ".mine"},
            "wandb": {"dir": str(folder), "tags": ["one", "two"]},
            "mlflow": {"description": "of a test"},
            "trackio": {"group": "tests", "embed": False},
        },
    )
    file = folder / "config.yaml"
    file.write_text(settings_as_yaml(chosen), encoding="utf-8")
    listener = Listener()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, listener.url)
        patch.setenv("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        # Not as an argument: its telemetry, which starts before, would still try to reach its server.
        patch.setenv("WANDB_MODE", "offline")
        done = run_malmoi("train", *as_flags(file), cwd=folder)
    listener.close()
    assert done.returncode == 0, done.stderr
    yield TrackedRun(run, folder, listener.asked)


def tensorboard_points(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def tensorboard_texts(folder: Path) -> dict[str, dict[int, str]]:
    """Return the texts by tag and step, without the indentation that has TensorBoard show them as they are."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag.removesuffix("/text_summary"): {
            event.step: dedent(event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }


def assert_close(seen: dict[str, dict[int, float]], expected: dict[str, dict[int, float]], rel: float = 1e-12) -> None:
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name] == pytest.approx(values, rel=rel), name


def test_a_run_logs_every_metric_of_its_steps_and_evaluations(tracked: TrackedRun) -> None:
    points = tracked.points()
    assert points.keys() == STEP_NAMES | VAL_NAMES
    assert all(list(points[name]) == [1, 2, 3, 4, 5, 6] for name in STEP_NAMES)
    assert all(list(points[name]) == [3, 6] for name in VAL_NAMES)


def test_nothing_reaches_for_the_network(tracked: TrackedRun) -> None:
    assert tracked.asked == []


def test_tensorboard_gets_everything(tracked: TrackedRun) -> None:
    folder = tracked.run / "tensorboard" / NAME
    assert_close(tensorboard_points(folder), tracked.points(), rel=1e-6)  # it keeps fp32
    [events] = folder.glob("events.*")
    assert events.name.endswith(".mine")
    [file] = folder.glob("*/hparams.yml")
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == tracked.config
    [hparams_events] = folder.glob("*/events.*")
    hparams = EventAccumulator(str(hparams_events.parent))
    hparams.Reload()
    content = hparams.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert started.hparams.keys() == tracked.config.keys()
    assert started.hparams["optim.lr"].number_value == 0.01


def wandb_records(file: Path) -> Iterator[Any]:
    """Yield the records of an offline run's file: protocol buffers in LevelDB's log format, after a header of 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, block, pending = file.read_bytes(), 7, 32_768, b""
    while place < len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        pending += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            record = Record()
            record.ParseFromString(pending)
            yield record
            pending = b""
    assert not pending


def item_name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


@needs("wandb")
def test_wandb_gets_everything_offline(tracked: TrackedRun) -> None:
    [file] = tracked.folder.glob("wandb/offline-run-*/*.wandb")
    config: dict[str, Any] = {}
    points: dict[str, dict[int, Any]] = {}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert (record.run.project, record.run.display_name) == (PROJECT, NAME)
            assert list(record.run.tags) == ["one", "two"]
            config |= {item_name(item): json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {item_name(item): json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            row = {item_name(item): json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
                points.setdefault(name, {})[row["_step"]] = row[name]
    assert points.pop("sample") == samples_of(tracked.run)
    assert list(points.pop("event/finish")) == [6]
    assert_close(points, tracked.points())
    assert {name: value for name, value in config.items() if name != "_wandb"} == tracked.config


@needs("mlflow")
def test_mlflow_gets_everything_in_a_file_store(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((tracked.folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(PROJECT)
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == NAME
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "of a test"
    # It keeps texts.
    assert run.data.params == {name: str(value) for name, value in tracked.config.items()}
    points = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    assert_close(points, tracked.points())
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    names = {str(file.relative_to(artifacts)) for file in artifacts.rglob("*.txt")}
    assert names == {"sample/step-000003.txt", "sample/step-000006.txt", "event/finish/step-000006.txt"}
    assert (artifacts / "sample" / "step-000003.txt").read_text(encoding="utf-8") == samples_of(tracked.run)[3]


@needs("mlflow")
def test_mlflow_takes_any_number_of_settings_and_one_that_is_too_long_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import PartialState
    from mlflow import MlflowClient

    PartialState()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    tracker = MLflowWithTexts(PROJECT)
    tracker.start()
    many = {f"group.setting_{number}": number for number in range(250)}  # it takes 100 at once
    tracker.store_init_configuration({"corpus.input": "가" * 7000, **many})
    tracker.finish()
    client = MlflowClient(tmp_path.as_uri())
    [run] = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    assert run.data.params == {
        "corpus.input": "가" * (6000 - len(CUT)) + CUT,
        **{name: str(value) for name, value in many.items()},
    }


READ_TRACKIO = """
import json, sys
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
[run] = Api().runs(sys.argv[1])
logs, alerts = SQLiteStorage.get_logs(sys.argv[1], run.name), SQLiteStorage.get_alerts(sys.argv[1])
print(json.dumps({"name": run.name, "config": run.config, "logs": logs, "alerts": alerts}, default=str))
"""


@dataclass(frozen=True)
class TrackioRun:
    """What trackio's own reader sees of the one run in a folder."""

    name: str
    config: dict[str, Any]
    points: dict[str, dict[int, float]]
    samples: dict[int, str]
    alerts: list[tuple[str, str, int]]
    """Title, level and step of each, the oldest first."""


def read_trackio(folder: Path) -> TrackioRun:
    """Read in a process of its own: trackio takes its folder from the environment when it is imported."""
    environ = {**environment(), "TRACKIO_DIR": str(folder)}
    words = [sys.executable, "-c", READ_TRACKIO, PROJECT]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=seconds(60), check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout.splitlines()[-1])
    points: dict[str, dict[int, float]] = {}
    samples: dict[int, str] = {}
    for row in kept["logs"]:
        for name in row.keys() - {"step", "timestamp"}:
            if name == "sample":
                samples[row["step"]] = row[name]["_value"]
            else:
                points.setdefault(name, {})[row["step"]] = row[name]
    alerts = sorted(kept["alerts"], key=lambda alert: str(alert["timestamp"]))
    alerts = [(alert["title"], alert["level"], alert["step"]) for alert in alerts]
    return TrackioRun(kept["name"], kept["config"], points, samples, alerts)


@needs("trackio")
def test_trackio_gets_everything_in_a_local_folder(tracked: TrackedRun) -> None:
    seen = read_trackio(tracked.folder / "trackio")
    assert seen.name == NAME
    assert seen.config["_Group"] == "tests"
    assert {name: seen.config.get(name) for name in tracked.config} == tracked.config
    assert_close(seen.points, tracked.points())


WAITS = """
import pathlib, time

def setup_trainer(trainer):
    trainer.add_hook(wait, every=4)

def wait(trainer):
    pathlib.Path("waits").touch()
    while not pathlib.Path("released").exists():
        time.sleep(0.01)
"""


@dataclass(frozen=True)
class FollowedRun:
    """What was seen of a run after step 4, while it trained; then it was stopped, and resumed to its end."""

    run: Path
    trackio: Path
    points: dict[str, dict[int, float]]
    texts: dict[str, dict[int, str]]
    in_trackio: TrackioRun | None


@pytest.fixture(scope="module")
def followed(settings: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> FollowedRun:
    folder = tmp_path_factory.mktemp("followed")
    (folder / "waits_at_step_4.py").write_text(WAITS)
    run, file = folder / "run", folder / "config.yaml"
    names = ("tensorboard", *(["trackio"] if "trackio" in INSTALLED else []))
    chosen = with_settings(
        settings, run=str(run), log__trackers=names, plugins=("waits_at_step_4",), generate__prompt="이순신"
    )
    file.write_text(settings_as_yaml(chosen), encoding="utf-8")
    words = [sys.executable, "-m", "malmoi.train", *as_flags(file)]
    environ = {**environment(), "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(words, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: (folder / "waits").exists() or process.poll() is not None, 120, "step 4")
            points, texts = (
                tensorboard_points(run / "tensorboard" / "run"),
                tensorboard_texts(run / "tensorboard" / "run"),
            )
            kept = read_trackio(folder / "trackio") if "trackio" in INSTALLED else None
        finally:
            process.send_signal(signal.SIGTERM)
            (folder / "released").touch()
        _, errors = process.communicate(timeout=seconds(120))
    assert process.returncode == 75, errors
    again = subprocess.run(
        words, cwd=folder, env=environ, capture_output=True, text=True, timeout=seconds(120), check=False
    )
    assert again.returncode == 0, again.stderr
    return FollowedRun(run, folder / "trackio", points, texts, kept)


def logged_until_step_4(run: Path) -> dict[str, dict[int, float]]:
    points = TrackedRun(run, run).points()
    return {name: {step: value for step, value in at.items() if step <= 4} for name, at in points.items()}


def samples_of(run: Path) -> dict[int, str]:
    return {sample.step: sample.text for sample in read_eval_samples(run)}


def test_tensorboard_shows_metrics_and_samples_while_the_run_trains(followed: FollowedRun) -> None:
    assert_close(followed.points, logged_until_step_4(followed.run), rel=1e-6)
    assert followed.texts == {"sample": {3: samples_of(followed.run)[3]}}


def test_tensorboard_gets_every_sample_and_event(followed: FollowedRun) -> None:
    texts = tensorboard_texts(followed.run / "tensorboard" / "run")
    assert texts.keys() == {"sample", "event/stop", "event/resume", "event/finish"}
    assert texts["sample"] == samples_of(followed.run)
    assert {name: list(at) for name, at in texts.items() if name != "sample"} == {
        "event/stop": [5],
        "event/resume": [5],
        "event/finish": [6],
    }
    assert texts["event/stop"][5] == "stopped by SIGTERM after step 5; run again to resume from step 5"
    [resumed] = read_metrics(followed.run).events
    assert texts["event/resume"][5] == resumed.text
    assert "trained to step 6; validation loss" in texts["event/finish"][6]


@needs("trackio")
def test_trackio_shows_metrics_and_samples_while_the_run_trains(followed: FollowedRun) -> None:
    seen = followed.in_trackio
    assert seen is not None
    assert_close(seen.points, logged_until_step_4(followed.run))
    assert seen.samples == {3: samples_of(followed.run)[3]}
    assert seen.alerts == []


@needs("trackio")
def test_trackio_continues_the_run_that_is_resumed_and_gets_every_sample_and_event(followed: FollowedRun) -> None:
    seen = read_trackio(followed.trackio)
    assert_close(seen.points, TrackedRun(followed.run, followed.run).points())
    assert seen.samples == samples_of(followed.run)
    assert seen.alerts == [("stop", "warn", 5), ("resume", "info", 5), ("finish", "info", 6)]


def test_on_two_ranks_rank_0_alone_writes_and_what_it_writes_is_everything(
    settings: RunSettings, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(settings_as_yaml(settings), encoding="utf-8")
    done = two_ranks("--config", str(file), f"--run={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    run = TrackedRun(tmp_path / "run", tmp_path)
    folder = run.run / "tensorboard" / "run"
    assert len(list(folder.glob("events.*"))) == len(list(folder.glob("*/hparams.yml"))) == 1
    assert run.points().keys() == STEP_NAMES | VAL_NAMES
    assert_close(tensorboard_points(folder), run.points(), rel=1e-6)


def test_arguments_for_a_tracker_that_does_not_exist_are_refused() -> None:
    require_trackers((), {"wandb": {"entity": "me"}})
    with pytest.raises(UserError, match=r"log\.tracker_args wandbb: no such tracker; did you mean 'wandb'\?"):
        require_trackers(("tensorboard",), {"wandbb": {"entity": "me"}})


def test_an_argument_that_a_tracker_does_not_take_is_one_line(settings: RunSettings, tmp_path: Path) -> None:
    from malmoi.train.pretrain import pretrain

    wrong = with_settings(settings, run=str(tmp_path / "run"), log__tracker_args={"tensorboard": {"flush_sec": 5}})
    with pytest.raises(UserError, match=r"^log\.tracker_args: .*unexpected keyword argument 'flush_sec'; see what "):
        pretrain(wrong)


class TrackerWithoutLogin(TensorBoardTracker):  # type: ignore[misc]  # accelerate is untyped
    """Cannot start, as wandb cannot before one has logged in."""

    def start(self) -> None:
        raise RuntimeError("No API key configured.\nLog in.")


def test_a_tracker_that_cannot_start_is_one_line(settings: RunSettings, tmp_path: Path) -> None:
    from malmoi.train.pretrain import pretrain

    name = f"{__name__}:TrackerWithoutLogin"
    failing = with_settings(settings, run=str(tmp_path / "run"), log__trackers=(name,))
    with pytest.raises(UserError, match=r"cannot start \(RuntimeError: No API key configured\.\); set the tracker up"):
        pretrain(failing)


def test_settings_are_named_with_dots_and_what_trackers_do_not_take_is_text() -> None:
    nested = {
        "run": "x",
        "optim": {"lr": 0.1, "betas": [0.9, 0.95]},
        "log": {"tracker_args": {"wandb": {"entity": "me"}}},
    }
    assert flat_config({**nested, "init_from": None, "init_resize": False}) == {
        "run": "x",
        "optim.lr": 0.1,
        "optim.betas": "[0.9, 0.95]",
        "log.tracker_args.wandb.entity": "me",
        "init_from": "None",
        "init_resize": False,
    }
