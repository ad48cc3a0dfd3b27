"""`samples.jsonl`: one sample a step, whatever its text holds."""

from pathlib import Path

from malmoi.train.metrics.log_file import SAMPLES_FILE, cut_back
from malmoi.train.metrics.sample_log import EvalSample, read_eval_samples, write_eval_sample


def test_lines_of_steps_that_are_done_again_are_dropped_and_a_step_has_one_sample(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_eval_sample(tmp_path, EvalSample(step, step * 8, "앞", f"앞\n{step}"))
    with (tmp_path / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 40, "tok')
    assert [sample.step for sample in read_eval_samples(tmp_path)] == [10, 20, 30]
    assert cut_back(tmp_path / SAMPLES_FILE, 20) == 0, "a line that is torn is no damage"
    write_eval_sample(tmp_path, EvalSample(20, 160, "앞", "앞 다시"))
    assert [(sample.step, sample.text) for sample in read_eval_samples(tmp_path)] == [(10, "앞\n10"), (20, "앞 다시")]
    assert (tmp_path / SAMPLES_FILE).read_text(encoding="utf-8").count("\n") == 2


def test_a_sample_keeps_every_character_that_splits_lines(tmp_path: Path) -> None:
    text = "앞\u2028뒤\u2029\u0085\x0b\x0c\x1c\r끝"
    for step in (10, 20):
        write_eval_sample(tmp_path, EvalSample(step, step * 8, "앞", text))
    assert [(sample.step, sample.text) for sample in read_eval_samples(tmp_path)] == [(10, text), (20, text)]
