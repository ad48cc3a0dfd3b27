"""`metrics.jsonl`: every record under its logged names, read back as it was written."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.train.metrics.log_file import METRICS_FILE
from malmoi.train.metrics.records import (
    AnyRecord,
    CustomMetrics,
    EventMetrics,
    RunMetrics,
    StepMetrics,
    TaskValMetrics,
    ValMetrics,
    append_metrics,
    as_logged,
    read_metrics,
    replace_evaluation,
    tracked_values,
)
from tests.launching import environment
from tests.time_limits import seconds

STEP = StepMetrics(3, 768, 7.5, 1e-3, 0.5, 1, 1e4, 0.25, 0.1, 0.0, 0.2, 1, 0.03, 812.5)
VAL = ValMetrics(4, 1024, 7.25, 1408.1, 2.5, 999)
TASK_VAL = TaskValMetrics(4, 1024, 0.6, {"accuracy": 0.75, "macro_f1": 0.7})
EVENT = EventMetrics(4, 1024, "resume", "resuming from step 4 (체크포인트)")
CUSTOM = CustomMetrics(4, 1024, {"mine/angle": 0.5})
LOGGED_STEP = {
    "step": 3,
    "tokens_seen": 768,
    "train/loss": 7.5,
    "train/lr": 1e-3,
    "train/grad_norm": 0.5,
    "train/skipped_steps": 1,
    "perf/tokens_per_sec": 1e4,
    "perf/mfu": 0.25,
    "perf/data_wait_frac": 0.1,
    "perf/checkpoint_frac": 0.0,
    "perf/eval_frac": 0.2,
    "perf/slowest_rank": 1,
    "perf/slowest_rank_lag": 0.03,
    "mem/peak_mib": 812.5,
}


def lines_to(step: int) -> str:
    return "".join(json.dumps({"step": number, "train/loss": 1.0}) + "\n" for number in range(1, step + 1))


@pytest.mark.parametrize(
    ("record", "logged"),
    [
        (STEP, LOGGED_STEP),
        (VAL, {"step": 4, "tokens_seen": 1024, "val/loss": 7.25, "val/ppl": 1408.1, "val/bpb": 2.5, "val/tokens": 999}),
        (
            TASK_VAL,
            {"step": 4, "tokens_seen": 1024, "val/loss": 0.6, "val/scores": {"accuracy": 0.75, "macro_f1": 0.7}},
        ),
        (EVENT, {"step": 4, "tokens_seen": 1024, "event": "resume", "text": EVENT.text}),
        (CUSTOM, {"step": 4, "tokens_seen": 1024, "mine/angle": 0.5}),
    ],
)
def test_a_record_is_logged_under_these_names(record: AnyRecord, logged: dict[str, object]) -> None:
    assert as_logged(record) == logged


def test_every_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for record in (STEP, VAL, TASK_VAL, EVENT, CUSTOM):
        append_metrics(tmp_path, record)
    assert read_metrics(tmp_path) == RunMetrics((STEP,), (VAL,), (TASK_VAL,), (EVENT,), (CUSTOM,))
    assert read_metrics(tmp_path).evaluations == (VAL, TASK_VAL)


def test_trackers_get_every_number_but_the_step_and_each_score_by_its_name() -> None:
    assert tracked_values(STEP) == {name: value for name, value in LOGGED_STEP.items() if name != "step"}
    assert tracked_values(TASK_VAL) == {
        "tokens_seen": 1024,
        "val/loss": 0.6,
        "val/accuracy": 0.75,
        "val/macro_f1": 0.7,
    }
    assert tracked_values(CUSTOM) == {"tokens_seen": 1024, "mine/angle": 0.5}


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == RunMetrics()


def test_a_metric_that_a_line_lacks_is_nan_and_lines_of_others_are_named(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(
        '{"step": 1, "tokens_seen": 8, "train/loss": 2.0}\nno JSON\n{"loss": 1.0}\n{"step": 2, "tok', encoding="utf-8"
    )
    seen = read_metrics(tmp_path)
    (step,) = seen.steps
    assert (step.step, step.tokens_seen, step.loss) == (1, 8, 2.0)
    assert math.isnan(step.lr) and math.isnan(step.peak_mib)
    assert seen.unreadable == (2, 3), "the last line is still being written"


def test_what_is_not_finite_is_null_in_strict_json_and_nan_when_it_is_read(tmp_path: Path) -> None:
    for record in (
        replace(STEP, loss=math.inf, grad_norm=math.nan),
        replace(VAL, ppl=math.inf),
        replace(TASK_VAL, scores={"f1": math.nan}),
        replace(CUSTOM, values={"mine/angle": -math.inf}),
    ):
        append_metrics(tmp_path, record)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for line in (tmp_path / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
    seen = read_metrics(tmp_path)
    assert math.isnan(seen.steps[0].loss) and math.isnan(seen.steps[0].grad_norm) and seen.steps[0].lr == STEP.lr
    assert math.isnan(seen.vals[0].ppl) and seen.vals[0].loss == VAL.loss
    assert seen.task_vals[0].scores == {"f1": None} or math.isnan(seen.task_vals[0].scores["f1"])
    assert math.isnan(seen.custom[0].values["mine/angle"])
    assert seen.unreadable == ()


def test_an_evaluation_that_is_done_again_replaces_its_line(tmp_path: Path) -> None:
    for record in (STEP, VAL, TASK_VAL, EVENT):
        append_metrics(tmp_path, record)
    replace_evaluation(tmp_path, replace(VAL, step=3))
    assert len(read_metrics(tmp_path).evaluations) == 3
    replace_evaluation(tmp_path, replace(VAL, loss=1.0))
    lines = (tmp_path / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("val/loss") for line in lines] == [None, 1.0, None, 7.25], "it stays in its place"


def test_a_full_disk_leaves_all_lines_and_nothing_beside_them(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    file.write_text(lines_to(99), encoding="utf-8")
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from malmoi.train.metrics.log_file import cut_back\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "cut_back(Path(sys.argv[1]) / 'metrics.jsonl', 90)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=seconds(60), check=False)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert file.read_text(encoding="utf-8") == lines_to(99)
    assert list(tmp_path.iterdir()) == [file]


def test_a_line_that_the_disk_does_not_take_names_the_file(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(OSError, match=METRICS_FILE):
        append_metrics(tmp_path, STEP)
