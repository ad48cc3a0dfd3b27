import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from malmoi.configs.outputs import SamplingSettings
from malmoi.errors import UserError
from malmoi.inference.generate import generate, read_prompts
from malmoi.inference.model_folder import LoadedModel, load_model
from malmoi.launch.cli import main
from tests.evaluation.fewshot.fewshot_models import gpt2
from tests.launching import run_malmoi
from tests.time_limits import seconds

SETTINGS = SamplingSettings(max_new_tokens=12, seed=7)

WITHOUT_MALMOI = """
import json, sys
assert "malmoi" not in sys.modules
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer("이순신", return_tensors="pt", return_token_type_ids=False)
set_seed(7)
ids = model.generate(**inputs, do_sample=True, top_k=50, max_new_tokens=12, num_return_sequences=3)
print(json.dumps([tokenizer.decode(row, skip_special_tokens=True) for row in ids]))
"""


@pytest.fixture(scope="module")
def loaded(finished_run: Path) -> LoadedModel:
    return load_model(finished_run / "model")


def samples(loaded: LoadedModel, prompt: str, settings: SamplingSettings = SETTINGS) -> tuple[str, ...]:
    return next(iter(generate(loaded, [prompt], settings))).samples


def test_the_same_seed_gives_the_same_text_and_another_seed_other_text(loaded: LoadedModel) -> None:
    first = samples(loaded, "이순신")
    assert len(first) == 3
    assert all(text.startswith("이순신") for text in first)
    assert first == samples(loaded, "이순신")
    assert first != samples(loaded, "이순신", replace(SETTINGS, seed=8))


def test_a_process_without_malmoi_generates_the_same_text(finished_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_MALMOI, str(finished_run / "model")]
    theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=seconds(120), check=False)
    assert theirs.returncode == 0, theirs.stderr
    words = ("--model", str(finished_run / "model"), "--prompt", "이순신", "--seed", "7", "--max_new_tokens", "12")
    ours = run_malmoi("generate", *words, "--json")
    assert ours.returncode == 0, ours.stderr
    printed = json.loads(ours.stdout)
    assert printed == {"prompt": "이순신", "seed": 7, "samples": json.loads(theirs.stdout)}


def test_a_literal_bos_at_the_start_of_a_prompt_is_the_one_that_is_added(loaded: LoadedModel) -> None:
    assert samples(loaded, "<s>이순신") == samples(loaded, "이순신")


def test_samples_of_a_prompt_do_not_depend_on_the_prompts_before(loaded: LoadedModel) -> None:
    alone = samples(loaded, "영화")
    together = list(generate(loaded, ["이순신", "영화"], SETTINGS))
    assert [result.prompt for result in together] == ["이순신", "영화"]
    assert together[1].samples == alone


def test_the_pad_and_unk_are_never_sampled(loaded: LoadedModel) -> None:
    wild = replace(SETTINGS, temperature=100.0, top_k=0, num_return_sequences=50)
    text = " ".join(
        loaded.tokenizer.decode(row)
        for row in loaded.model.generate(
            **loaded.tokenizer("가", return_tensors="pt", return_token_type_ids=False),
            do_sample=True,
            top_k=0,
            temperature=100.0,
            max_new_tokens=20,
            min_new_tokens=20,
            num_return_sequences=50,
        )
    )
    assert "<unk>" not in text
    assert "<pad>" not in text
    assert len(samples(loaded, "가", wild)) == 50


def test_beams_and_greedy_search_are_deterministic(loaded: LoadedModel) -> None:
    greedy = replace(SETTINGS, do_sample=False, num_return_sequences=1)
    assert samples(loaded, "영화", greedy) == samples(loaded, "영화", replace(greedy, seed=1))
    beams = replace(greedy, num_beams=3, num_return_sequences=2, length_penalty=0.5)
    assert len(set(samples(loaded, "영화", beams))) == 2


def test_prompts_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("이순신\r\n\n  영화는\u2028정말\n", encoding="utf-8")
    assert read_prompts(file) == ["이순신", "  영화는\u2028정말"]
    file.write_bytes("가".encode("cp949"))
    with pytest.raises(UserError, match=r"prompts.txt: not UTF-8 at byte 0"):
        read_prompts(file)
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(file)
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "none.txt")


PROMPTS = ["이순신", "영화는 정말", "그", "우리나라의 말과 글"]
GREEDY = SamplingSettings(max_new_tokens=16, do_sample=False, num_return_sequences=1)


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose next token depends on all that it reads, as a model of twenty steps' does not."""
    return load_model(gpt2(tmp_path_factory.mktemp("sensitive")))


@pytest.mark.parametrize(
    "change",
    [{}, {"num_beams": 3}, {"repetition_penalty": 50.0, "max_new_tokens": 60}, {"no_repeat_ngram_size": 2}],
)
def test_a_batch_padded_on_the_left_gives_the_texts_of_one_prompt_at_a_time(
    sensitive: LoadedModel, change: dict[str, object]
) -> None:
    settings = replace(GREEDY, **change)
    alone = list(generate(sensitive, PROMPTS, settings, logprobs=True))
    assert len({result.tokens[0][0].id for result in alone}) > 1, "the prompts matter"
    for size in (2, 3, 4):
        assert list(generate(sensitive, PROMPTS, settings, batch_size=size, logprobs=True)) == alone


def test_a_batch_of_several_samples_keeps_each_with_its_prompt(loaded: LoadedModel) -> None:
    drawn = list(generate(loaded, PROMPTS, SETTINGS, batch_size=4))
    assert [result.prompt for result in drawn] == PROMPTS
    for result in drawn:
        assert len(result.samples) == 3
        assert all(text.startswith(result.prompt) for text in result.samples)
    lengths = replace(GREEDY, max_length=20)
    assert list(generate(loaded, PROMPTS, lengths, batch_size=4)) == list(generate(loaded, PROMPTS, lengths))


def test_a_stop_string_ends_a_sample_and_is_cut_off(loaded: LoadedModel) -> None:
    [uncut] = generate(loaded, ["영화"], GREEDY)
    new = uncut.samples[0].removeprefix("영화")
    stop = new[3:5]
    [cut] = generate(loaded, ["영화"], GREEDY, stop=(stop, "없는 글자열"), logprobs=True)
    assert cut.samples[0] == "영화" + new[: new.index(stop)]
    assert len(cut.tokens[0]) < len(uncut.samples[0])
    [kept] = generate(loaded, ["영화"], GREEDY, stop=("영화",))
    assert kept.samples[0].startswith("영화"), "the prompt itself may hold it"
    with pytest.raises(UserError, match=r"^stop: an empty string"):
        list(generate(loaded, ["영화"], GREEDY, stop=("",)))


def test_log_probabilities_are_the_models_own_whatever_the_sampling(loaded: LoadedModel) -> None:
    wild = replace(SETTINGS, temperature=3.0, top_k=5, repetition_penalty=1.3)
    [drawn] = generate(loaded, ["이순신"], wild, logprobs=True)
    inputs = loaded.tokenizer("이순신", return_tensors="pt", return_token_type_ids=False)
    set_seed(7)
    theirs = loaded.model.generate(
        **inputs, do_sample=True, temperature=3.0, top_k=5, repetition_penalty=1.3, max_new_tokens=12,
        num_return_sequences=3, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    logprobs = torch.stack(theirs.logits, 1).float().log_softmax(-1)
    new = theirs.sequences[:, inputs["input_ids"].shape[1] :]
    for row, tokens in enumerate(drawn.tokens):
        assert tokens and [token.id for token in tokens] == new[row, : len(tokens)].tolist()
        directly = [float(logprobs[row, at, token.id]) for at, token in enumerate(tokens)]
        assert [token.logprob for token in tokens] == pytest.approx(directly, abs=1e-4)
    batched = list(generate(loaded, PROMPTS, GREEDY, batch_size=4, logprobs=True))
    for together, alone in zip(batched, generate(loaded, PROMPTS, GREEDY, logprobs=True), strict=True):
        assert [t.logprob for t in together.tokens[0]] == pytest.approx([t.logprob for t in alone.tokens[0]], abs=1e-5)


def test_plain_arguments_are_the_settings_of_the_same_names(sensitive: LoadedModel) -> None:
    [by_settings] = generate(sensitive, ["영화"], replace(SETTINGS, temperature=0.5))
    assert generate(sensitive, "영화", SETTINGS, temperature=0.5) == [by_settings]
    assert sensitive.folder is not None
    assert generate(str(sensitive.folder), ["영화"], max_new_tokens=12, seed=7, temperature=0.5) == [by_settings]
    for change, message in (
        ({"temperture": 0.5}, r"^unknown setting 'temperture'; did you mean 'temperature'"),
        ({"num_return_sequences": 0}, r"^num_return_sequences 0: give"),
        ({"top_p": 1.5}, r"^top_p 1.5: give"),
        ({"batch_size": 0}, r"^batch_size 0: choose 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            generate(sensitive, "영화", **change)  # type: ignore[arg-type]


def test_the_command_prints_tokens_only_where_they_are_asked_for(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", str(finished_run / "model"), "--prompt", "영화", "--max_new_tokens", "8", "--json"]
    capsys.readouterr()
    assert main(words) == 0
    assert "tokens" not in json.loads(capsys.readouterr().out)
    assert main([*words, "--logprobs", "--stop", ".", "다"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["tokens"]) == 3
    assert all(token["logprob"] <= 0 for sample in printed["tokens"] for token in sample)
    assert not any("." in text or "다" in text for text in printed["samples"])


def test_the_texts_of_several_prompts_are_apart(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("하나\n둘\n", encoding="utf-8")
    words = ["generate", "--model", str(finished_run / "model"), "--prompts_file", str(tmp_path / "prompts")]
    assert main([*words, "--max_new_tokens", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("하나  (seed 42)\n")
    assert printed.count("\n\n둘  (seed 42)\n") == 1


@pytest.mark.parametrize("command", ["generate", "evaluate", "quality", "fewshot"])
def test_a_missing_model_is_reported_before_torch_is_imported(command: str) -> None:
    program = (
        "import sys; from malmoi.launch.cli import main\n"
        f"code = main(['{command}', '--model', '/nowhere', *sys.argv[1:]])\n"
        "print(code, 'torch' in sys.modules)"
    )
    more = {"evaluate": ["--data", "x"], "fewshot": ["--tasks", "copa", "--out", "x"]}.get(command, [])
    ended = subprocess.run(
        [sys.executable, "-c", program, *more], capture_output=True, text=True, timeout=seconds(60), check=False
    )
    assert ended.stdout == "2 False\n"
    assert ended.stderr.startswith(f"malmoi {command}: /nowhere: no such model folder")
