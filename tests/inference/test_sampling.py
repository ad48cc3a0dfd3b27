import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Tokenizer, set_seed

from malmoi.configs.outputs import SamplingSettings
from malmoi.errors import UserError
from malmoi.inference.generate import generate
from malmoi.inference.model_folder import LoadedModel, load_model
from malmoi.inference.sampling import check_sampling, num_new_tokens, prompt_ids, sample_rows, samples_as_torch
from tests.evaluation.fewshot.fewshot_models import gpt2, llama

SETTINGS = SamplingSettings(max_new_tokens=12, seed=7)


@pytest.fixture(scope="module")
def loaded(finished_run: Path) -> LoadedModel:
    return load_model(finished_run / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 100}, r"^max_new_tokens 100: .* do not fit the model's context of 32; choose \d+ or less$"),
        (
            {"max_new_tokens": 27, "max_length": 200},
            r"^max_length 200: .* do not fit the model's context of 32; choose more than \d+, up to 32$",
        ),
        ({"temperature": 0.0}, "^temperature 0.0: choose a number above 0; do_sample false"),
        ({"top_p": 0.0}, "^top_p 0.0: choose a number above 0, up to 1"),
        ({"min_p": 1.0}, "^min_p 1.0: choose 0 or more, and less than 1"),
        ({"seed": 2**32}, "^seed 4294967296: choose a number from 0 to"),
        ({"repetition_penalty": float("inf")}, "^repetition_penalty inf: choose a finite number"),
        ({"do_sample": False, "num_return_sequences": 2}, "num_return_sequences 2 is more than num_beams 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is more than num_beams 2"),
        (
            {"max_length": 2},
            r"^max_length 2: a prompt of (\d+) tokens leaves no room for new ones; choose more than \1, up to 32",
        ),
    ],
)
def test_impossible_settings_are_refused(loaded: LoadedModel, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(generate(loaded, ["이순신 장군"], replace(SETTINGS, **change)))


def test_an_error_about_a_run_names_its_setting() -> None:
    with pytest.raises(UserError, match=r"^generate\.temperature 0.0: .*; generate\.do_sample false"):
        check_sampling(SamplingSettings(temperature=0.0), "generate.")


def test_a_prompt_longer_than_the_context_is_to_be_shortened(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match=r"shorten the prompt by \d+ tokens"):
        list(generate(loaded, ["가" * 200], SETTINGS))


def test_an_empty_prompt_continues_the_bos_token_or_is_refused(loaded: LoadedModel) -> None:
    assert prompt_ids(loaded.tokenizer, "") == prompt_ids(loaded.tokenizer, "<s>") == [loaded.tokenizer.bos_token_id]
    bare = GPT2Tokenizer(vocab={"a": 0}, merges=[])
    assert prompt_ids(bare, "a") == [0]
    with pytest.raises(UserError, match=r"^generate.prompt: empty, and this tokenizer adds no token before it"):
        prompt_ids(bare, "", "generate.")
    with pytest.raises(UserError, match=r"generate\.prompt: holds bytes that are not UTF-8; give text"):
        prompt_ids(loaded.tokenizer, "앞\udcff", "generate.")


@pytest.mark.parametrize(("length", "context", "most"), [(10, 128, 118), (127, 128, 1), (1, 2, 1)])
def test_the_length_that_an_error_names_is_allowed(length: int, context: int, most: int) -> None:
    for settings, setting in (
        (SamplingSettings(max_new_tokens=most + 1), "max_new_tokens"),
        (SamplingSettings(max_length=context + 1), "max_length"),
        (SamplingSettings(max_length=length), "max_length"),
    ):
        with pytest.raises(UserError, match=rf"^generate\.{setting} ") as refused:
            num_new_tokens(settings, length, context, "generate.")
        last = int(re.findall(r"\d+", str(refused.value).split("; choose ")[1])[-1])
        assert num_new_tokens(replace(settings, **{setting: last}), length, context) == most


SAMPLED = SamplingSettings(max_new_tokens=24, seed=11, num_return_sequences=3)
PROMPTS = ["이순신 장군", "영화"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    make = {"gpt2": gpt2, "llama": llama}[request.param]
    return load_model(make(tmp_path_factory.mktemp(request.param)))


@given(st.integers(1, 40), st.integers(1, 2000), st.integers(0, 2000), st.integers(0, 2**31))
def test_a_sampled_token_is_that_of_torchs_multinomial(rows: int, words: int, barred: int, seed: int) -> None:
    if not samples_as_torch():
        pytest.skip("torch makes other exponential numbers on this machine")
    torch.manual_seed(seed)
    scores = torch.randn(rows, words) * 5
    scores[:, torch.randperm(words)[: min(barred, words - 1)]] = -torch.inf
    probabilities = scores.softmax(-1)
    torch.manual_seed(seed)
    theirs, after = torch.multinomial(probabilities, 1), torch.rand(1)
    torch.manual_seed(seed)
    assert torch.equal(sample_rows(probabilities), theirs)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 1.7, "top_k": 0},
        {"top_p": 0.6, "top_k": 20, "temperature": 0.8},
        {"min_p": 0.05, "repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 12, "num_return_sequences": 1},
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_samples_are_exactly_those_of_generate(model: LoadedModel, change: dict[str, object], size: int) -> None:
    settings = replace(SAMPLED, **change)
    ours = [
        [token.id for token in sample]
        for result in generate(model, PROMPTS, settings, batch_size=size, logprobs=True)
        for sample in result.tokens
    ]
    theirs = []
    for first in range(0, len(PROMPTS), size):
        rows = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS[first : first + size]]
        width = max(map(len, rows))
        set_seed(settings.seed)
        ids = model.model.generate(
            input_ids=torch.tensor([[row[0]] * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            pad_token_id=256,
            do_sample=True,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p or None,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            min_new_tokens=settings.min_new_tokens or None,
            max_new_tokens=settings.max_new_tokens,
            num_return_sequences=settings.num_return_sequences,
        )
        theirs += ids[:, width:].tolist()
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine == its[: len(mine)]
        assert len(mine) == len(its) or mine[-1] == 256
