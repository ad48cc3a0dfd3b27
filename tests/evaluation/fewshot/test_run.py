import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance

from malmoi.configs.commands import FewshotOptions
from malmoi.errors import UserError
from malmoi.evaluation.fewshot.baselines import baselines
from malmoi.evaluation.fewshot.results import TaskResult, describe_fit, read_results
from malmoi.evaluation.fewshot.run import (
    ContextCheck,
    build_prompt,
    choose_examples,
    fewshot,
    open_model,
    run_fewshot,
)
from malmoi.evaluation.fewshot.task_files import Document, FewshotTask, load_tasks
from malmoi.inference.model_folder import load_model
from malmoi.launch.cli import main
from tests.evaluation.fewshot.fewshot_models import bert, gpt2, llama
from tests.launching import run_malmoi


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


def run(model: Path, out: Path, *tasks: str, **options: object) -> list[TaskResult]:
    settings = {"limit": 6, "shots": (0, 2), **options}
    asked = FewshotOptions(model=str(model), tasks=tasks, out=str(out), **settings)
    return list(run_fewshot(asked, lambda _: None, lambda _: None))


def directly(folder: Path, task: FewshotTask, shots: int, seed: int, limit: int) -> list[list[float]]:
    """Log-likelihoods of the choices from the model's logits, one text at a time, without lm_eval."""
    loaded = load_model(folder)
    found = []
    for number, document in enumerate(task.documents[:limit]):
        examples = choose_examples(task, document, number, shots, seed)
        prompt = "\n\n".join(
            [f"{example.prompt} {example.choices[example.gold]}" for example in examples] + [document.prompt]
        )
        logprobs_of_choices = []
        for choice in document.choices:
            ids = loaded.tokenizer(f"{prompt} {choice}", return_tensors="pt")["input_ids"]
            begin = len(loaded.tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logprobs = loaded.model(ids[:, :-1]).logits[0].double().log_softmax(-1)
            logprobs_of_choices.append(sum(float(logprobs[at - 1, ids[0, at]]) for at in range(begin, ids.shape[1])))
        found.append(logprobs_of_choices)
    return found


@pytest.mark.parametrize("shots", [0, 2])
def test_lm_evals_numbers_equal_a_direct_computation_from_logits(gpt2_folder: Path, tmp_path: Path, shots: int) -> None:
    [result] = run(gpt2_folder, tmp_path, "similarity", limit=20, shots=(shots,), seeds=(3,))
    [task] = load_tasks(["similarity"])
    logprobs = torch.tensor(directly(gpt2_folder, task, shots, 3, 20), dtype=torch.float64)
    expected = (logprobs.softmax(-1) * torch.arange(6.0)).sum(-1)
    right = torch.tensor([document.value for document in task.documents[:20]])
    assert len(set(expected.tolist())) > 10, "the model tells the documents apart"
    by_hand = torch.corrcoef(torch.stack([expected, right]))[0, 1]
    assert result.runs[0].scores[0].score == pytest.approx(float(by_hand), abs=1e-4)


def test_accuracy_is_the_fraction_of_most_likely_choices_right_and_its_error_is_over_documents(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    [result] = run(gpt2_folder, tmp_path, "topic", limit=25, shots=(1,))
    [task] = load_tasks(["topic"])
    logprobs = directly(gpt2_folder, task, 1, 0, 25)
    hits = [max(range(7), key=row.__getitem__) == d.gold for row, d in zip(logprobs, task.documents, strict=False)]
    mean = sum(hits) / 25
    score = result.runs[0].scores[0]
    assert (score.metric, score.score) == ("acc", mean)
    assert score.document_stderr == pytest.approx(math.sqrt(mean * (1 - mean) / 24))


def test_generated_answers_equal_greedy_text_of_one_prompt_at_a_time(gpt2_folder: Path, tmp_path: Path) -> None:
    [task] = load_tasks(["translation_ko_en"])
    model = open_model(gpt2_folder, batch_size=4)
    loaded = load_model(gpt2_folder)
    from malmoi.evaluation.fewshot.metrics import Answer, metric_by_name

    answers = []
    for number, document in enumerate(task.documents[:6]):
        examples = choose_examples(task, document, number, 2, 0)
        prompt = build_prompt(task.settings, document, examples, ContextCheck(model, task.settings)).text
        ids = loaded.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        new = loaded.model.generate(**ids, do_sample=False, max_new_tokens=48, pad_token_id=256)
        text = loaded.tokenizer.decode(new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(Answer(text.split("\n")[0].strip(), document.answers))
    [result] = run(gpt2_folder, tmp_path, "translation_ko_en", shots=(2,), batch_size=4)
    expected = metric_by_name("chrf", "generate_until").score(answers)
    assert result.runs[0].scores[0].score == pytest.approx(expected, abs=1e-6)


def test_every_kind_of_task_runs_with_another_architecture(llama_folder: Path, tmp_path: Path) -> None:
    tasks = ("sentiment", "kobest_copa", "arithmetic_2da", "last_word", "open_qa", "translation_en_ko", "similarity")
    results = run(llama_folder, tmp_path, *tasks, limit=3, shots=(0, 1))
    assert [result.task for result in results] == list(tasks)
    assert all(math.isfinite(score.score) for result in results for run in result.runs for score in run.scores)
    assert list(read_results(tmp_path)) == sorted(results, key=lambda result: result.task)


def test_samples_have_prompts_answers_and_log_likelihoods(gpt2_folder: Path, tmp_path: Path) -> None:
    tasks = ("topic", "last_word", "translation_ko_en")
    results = run(gpt2_folder, tmp_path, *tasks, limit=5, shots=(0, 2), seeds=(3,), log_samples=True)
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.samples.jsonl").read_text("utf-8").splitlines()]
        for name in tasks
    }
    [topic] = load_tasks(["topic"])
    for result in results:
        asked = [(line["shots"], line["seed"], line["document"]) for line in lines[result.task]]
        assert asked == [(shots, 3, number) for shots in (0, 2) for number in range(result.documents)]
        metric = result.metrics[0]
        if metric in lines[result.task][0]["scores"]:
            for shot_run in result.runs:
                own = [line["scores"][metric] for line in lines[result.task] if line["shots"] == shot_run.shots]
                assert shot_run.scores[0].score == pytest.approx(sum(own) / len(own))
    for shots in (0, 2):
        own = [line for line in lines["topic"] if line["shots"] == shots]
        for line, expected in zip(own, directly(gpt2_folder, topic, shots, 3, 5), strict=True):
            assert line["loglikelihoods"] == pytest.approx(expected, abs=1e-3)
            assert line["answer"] == line["choices"][max(range(7), key=expected.__getitem__)]
            assert line["prompt"].count("\n\n") >= shots
    assert [line["right"] for line in lines["topic"][:5]] == [[d.choices[d.gold]] for d in topic.documents[:5]]
    assert all(line["answer"] is None and len(line["loglikelihoods"]) == 1 for line in lines["last_word"])
    assert all(isinstance(line["answer"], str) and line["choices"] == [] for line in lines["translation_ko_en"])
    assert len(read_results(tmp_path)) == 3
    run(gpt2_folder, tmp_path, "topic", limit=2, shots=(0,))
    assert not (tmp_path / "topic.samples.jsonl").exists(), "they are of the result that is gone"


def test_several_seeds_give_a_mean_and_its_standard_error(gpt2_folder: Path, tmp_path: Path) -> None:
    [result] = run(gpt2_folder, tmp_path, "similarity", limit=12, shots=(0, 3), seeds=(0, 1, 2))
    assert [(run.shots, run.seed) for run in result.runs] == [(0, 0), (3, 0), (3, 1), (3, 2)]
    none, three = result.curve("pearson")
    assert none.stderr is None and none.seeds == 1
    scores = [run.scores[0].score for run in result.runs[1:]]
    assert len(set(scores)) == 3
    mean = sum(scores) / 3
    assert three.mean == pytest.approx(mean)
    assert three.stderr == pytest.approx(math.sqrt(sum((score - mean) ** 2 for score in scores) / 2 / 3))


def test_examples_depend_on_the_seed_and_the_document_and_fewer_are_among_more() -> None:
    [task] = load_tasks(["sentiment"])
    document = task.documents[0]
    five = choose_examples(task, document, 0, 5, seed=0)
    assert five == choose_examples(task, document, 0, 5, seed=0)
    assert five != choose_examples(task, document, 0, 5, seed=1)
    assert five != choose_examples(task, document, 1, 5, seed=0)
    assert choose_examples(task, document, 0, 2, seed=0) == five[-2:]
    assert len(set(five)) == 5


def test_a_row_is_never_its_own_example(tmp_path: Path) -> None:
    rows = [{"text": text, "label": number % 2} for number, text in enumerate("가나다라마")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["task: t", "data: rows.jsonl", "output_type: multiple_choice", "doc_to_text: '{{text}}'"]
    lines += ["doc_to_choice: [x, y]", "doc_to_target: label", "metrics: [acc]"]
    (tmp_path / "t.yaml").write_text("\n".join(lines))
    [task] = load_tasks([str(tmp_path / "t.yaml")])
    for number, document in enumerate(task.documents):
        chosen = choose_examples(task, document, number, 4, 0)
        assert len(chosen) == 4 and document not in chosen
    with pytest.raises(UserError, match=r"shots 5: the task 't' has 4 examples"):
        run(tmp_path, tmp_path / "out", str(tmp_path / "t.yaml"), shots=(5,))


def test_prompts_that_exceed_the_context_lose_examples_and_this_is_reported(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "short", positions=260)
    [task] = load_tasks(["sentiment"])
    model = open_model(folder, 4)
    context = ContextCheck(model, task.settings)
    fitting = [document for document in task.documents[:40] if context.fits(document.prompt, document)]
    assert 0 < len(fitting) < 40
    dropped = []
    for number, document in enumerate(fitting):
        examples = choose_examples(task, document, number, 4, 0)
        prompt = build_prompt(task.settings, document, examples, context)
        kept = examples[prompt.dropped :]
        assert prompt.text == "\n\n".join([f"{e.prompt} {e.choices[e.gold]}" for e in kept] + [document.prompt]), (
            "what is left is complete"
        )
        # A byte is a token; the last one of the longest answer is never read.
        longest = max(len(f" {choice}".encode()) for choice in document.choices)
        assert len(prompt.text.encode()) + longest - 1 <= 260
        if prompt.dropped:
            more = examples[prompt.dropped - 1]
            assert len(f"{more.prompt} {more.choices[more.gold]}\n\n{prompt.text}".encode()) + longest - 1 > 260
        dropped.append(prompt.dropped)
    [result] = run(folder, tmp_path / "out", "sentiment", limit=40, shots=(4,))
    assert (result.documents, result.left_out) == (len(fitting), 40 - len(fitting))
    assert result.runs[0].shortened_prompts == sum(count > 0 for count in dropped) > 0
    assert result.runs[0].dropped_examples == sum(dropped)
    left_out, shortened = describe_fit([result])
    assert (
        left_out == f"sentiment: {40 - len(fitting)} documents left out, longer than the model's context by themselves"
    )
    assert shortened.endswith(f"prompts outgrew the context and lost {sum(dropped)} examples")


def test_a_prompt_fits_to_the_last_token_that_is_read(tmp_path: Path) -> None:
    model = open_model(gpt2(tmp_path / "short", positions=64), 1)
    choice, written = (load_tasks([name])[0].settings for name in ("sentiment", "open_qa"))
    assert len(" 부정".encode()) == 7
    document = Document("", ("부정", "긍정"), 0, ("답",))
    # 64 tokens are read: 58 of the prompt and the answer's first 6.
    assert ContextCheck(model, choice).fits("x" * 58, document)
    assert not ContextCheck(model, choice).fits("x" * 59, document)
    assert model.loglikelihood([Instance("loglikelihood", {}, ("x" * 58, " 부정"), 0)])[0][0] < 0
    assert ContextCheck(model, written).fits("x" * (64 - written.max_gen_toks), document)
    assert not ContextCheck(model, written).fits("x" * (65 - written.max_gen_toks), document)


def test_chance_and_majority_are_scored_as_the_model_is() -> None:
    [copa, topic, words, last] = load_tasks(["kobest_copa", "topic", "arithmetic_1dc", "last_word"])
    chance = {name: {b.metric: b for b in baselines(task, task.documents)} for name, task in (
        ("copa", copa), ("topic", topic), ("words", words), ("last", last))}  # fmt: skip
    assert chance["copa"]["acc"].chance == 0.5
    assert chance["topic"]["acc"].chance == pytest.approx(1 / 7)
    golds = [document.gold for document in topic.documents]
    most = max({e.gold for e in topic.examples}, key=[e.gold for e in topic.examples].count)
    assert chance["topic"]["acc"].majority == golds.count(most) / len(golds)
    answers = [e.answers[0] for e in words.examples]
    favorite = max(set(answers), key=answers.count)
    hits = [d.answers[0] == favorite for d in words.documents]
    assert answers.count(favorite) > 3
    assert chance["words"]["exact_match"].majority in {
        sum(d.answers[0] == a for d in words.documents) / len(hits)
        for a in answers
        if answers.count(a) == answers.count(favorite)
    }
    assert 0 < chance["words"]["exact_match"].chance < 0.1
    assert chance["last"]["acc"].chance is None


def test_the_command_prints_one_object_and_writes_a_file_a_task(gpt2_folder: Path, tmp_path: Path) -> None:
    words = ("--model", str(gpt2_folder), "--out", str(tmp_path / "out"), "--limit", "3", "--json")
    done = run_malmoi(
        "fewshot", *words, "--tasks", "arithmetic_1dc", "last_word", "--shots", "0", "1", "--seeds", "0", "1"
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [task["task"] for task in printed["tasks"]] == ["arithmetic_1dc", "last_word"]
    assert len(printed["tasks"][0]["runs"]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["arithmetic_1dc.json", "last_word.json"]
    assert json.loads((tmp_path / "out" / "last_word.json").read_text()) == printed["tasks"][1]
    first = printed["tasks"][1]["means"][0]
    assert (first["metric"], first["shots"], first["seeds"], first["stderr"]) == ("acc", 0, 1, None)
    assert first["mean"] == printed["tasks"][1]["runs"][0]["scores"][0]["score"]


def test_the_table_shows_means_errors_and_levels(
    gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ("--tasks", "topic", "--shots", "0", "1", "--seeds", "0", "1", "--limit", "4")
    assert main(["fewshot", "--model", str(gpt2_folder), "--out", str(tmp_path), *words]) == 0
    printed = capsys.readouterr().out
    for part in ("0 shots", "1 shot ", "chance", "majority", "topic", "acc", "macro_f1", "±", "0.143"):
        assert part in printed


def test_bad_input_is_exit_code_2_and_one_line(
    gpt2_folder: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, other = str(finished_run / "model"), str(bert(tmp_path / "bert"))
    capsys.readouterr()

    def refused(*words: str, model: str = str(gpt2_folder)) -> str:
        assert main(["fewshot", "--model", model, "--out", str(tmp_path / "out"), *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.strip().count("\n") == 0
        return printed.err

    assert "did you mean 'sentiment'" in refused("--tasks", "sentimnet")
    assert "--tasks missing" in refused()
    assert "holds a BertForMaskedLM" in refused("--tasks", "sentiment", "--limit", "2", model=other)
    too_long = refused("--tasks", "kobest_boolq", "--limit", "2", model=short)
    assert "each of its 2 prompts is longer than the model's context of 32 tokens" in too_long
    too_long = refused("--tasks", "translation_ko_en", model=short)
    assert "needs answers of 48 tokens, and the model's context is 32" in too_long
    (tmp_path / "task.yaml").write_text("task: t\noutput_type: multiple_choice\n")
    assert "no 'doc_to_text'" in refused("--tasks", str(tmp_path / "task.yaml"))
    assert "shots 1 1: give one or more, each once" in refused("--tasks", "topic", "--shots", "1", "1")
    assert "limit 0: give" in refused("--tasks", "topic", "--limit", "0")
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_task_that_does_not_fit_does_not_keep_the_others_from_running(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ("translation_ko_en", "sentiment")
    words = ("--model", str(finished_run / "model"), "--out", str(tmp_path / "out"), "--shots", "0", "--limit", "40")
    capsys.readouterr()
    assert main(["fewshot", *words, "--tasks", *tasks, "--json"]) == 0
    printed = capsys.readouterr()
    assert [result["task"] for result in json.loads(printed.out)["tasks"]] == ["sentiment"]
    assert "left out: task 'translation_ko_en' needs answers of 48 tokens" in printed.err
    assert [file.name for file in (tmp_path / "out").glob("*.json")] == ["sentiment.json"]


def test_bad_input_of_a_process_is_nothing_but_one_line(tmp_path: Path) -> None:
    done = run_malmoi("fewshot", "--model", str(tmp_path), "--tasks", "topic", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no config.json, so no model folder" in done.stderr


def test_a_folder_with_another_models_results_is_left_alone(
    gpt2_folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    run(gpt2_folder, tmp_path, "arithmetic_1dc", limit=2, shots=(0,))
    before = (tmp_path / "arithmetic_1dc.json").read_bytes()
    with pytest.raises(UserError, match="holds results of the model"):
        run(llama_folder, tmp_path, "arithmetic_1dc", limit=2, shots=(0,))
    assert (tmp_path / "arithmetic_1dc.json").read_bytes() == before
    (tmp_path / "arithmetic_1dc.json").write_text("{}")
    with pytest.raises(UserError, match="no valid result of `malmoi fewshot`"):
        run(gpt2_folder, tmp_path, "arithmetic_1dc", limit=2, shots=(0,))


def test_the_function_gives_the_results_of_the_command_from_plain_arguments(gpt2_folder: Path, tmp_path: Path) -> None:
    by_command = run(gpt2_folder, tmp_path, "arithmetic_1dc", limit=3, shots=(0, 2), seeds=(1,))
    assert fewshot(load_model(gpt2_folder), "arithmetic_1dc", shots=(0, 2), seeds=1, limit=3) == by_command
    out = tmp_path / "out"
    assert fewshot(str(gpt2_folder), ["arithmetic_1dc"], shots=[0, 2], seeds=[1], limit=3, out=out) == by_command
    assert list(read_results(out)) == by_command
    with pytest.raises(UserError, match=r"^limit 0: give"):
        fewshot(gpt2_folder, "topic", limit=0)
