import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Tokenizer

from configs.errors import BadInput
from configs.schema import SamplingSettings
from inference.generate import generate
from inference.model_folder import LoadedModel, load_model
from inference.sampling import new_tokens, prompt_ids

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
        ({"temperature": 0.0}, "temperature 0.0: choose a number above 0"),
        ({"top_p": 1.5}, "top_p 1.5: choose a share above 0"),
        ({"temperature": float("inf")}, "temperature inf: choose a number above 0"),
        ({"do_sample": False, "num_return_sequences": 2}, "num_return_sequences 2 is more than num_beams 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is more than num_beams 2"),
        (
            {"max_length": 2},
            r"^max_length 2: a prompt of (\d+) tokens is as long already; choose more than \1, up to 32",
        ),
    ],
)
def test_impossible_settings_are_refused(loaded: LoadedModel, change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        list(generate(loaded, ["이순신 장군"], replace(SETTINGS, **change)))


def test_a_prompt_longer_than_the_context_is_to_be_shortened(loaded: LoadedModel) -> None:
    with pytest.raises(BadInput, match=r"shorten the prompt by \d+ tokens"):
        list(generate(loaded, ["가" * 200], SETTINGS))


def test_an_empty_prompt_goes_on_from_the_beginning_of_text_or_is_refused(loaded: LoadedModel) -> None:
    assert prompt_ids(loaded.tokenizer, "") == prompt_ids(loaded.tokenizer, "<s>") == [loaded.tokenizer.bos_token_id]
    bare = GPT2Tokenizer(vocab={"a": 0}, merges=[])
    assert prompt_ids(bare, "a") == [0]
    with pytest.raises(BadInput, match=r"^sampling.prompt: empty, and this tokenizer puts no token before it"):
        prompt_ids(bare, "", "sampling.")


@pytest.mark.parametrize(("length", "context", "most"), [(10, 128, 118), (127, 128, 1), (1, 2, 1)])
def test_what_a_refusal_says_of_lengths_is_taken(length: int, context: int, most: int) -> None:
    for settings, setting in (
        (SamplingSettings(max_new_tokens=most + 1), "max_new_tokens"),
        (SamplingSettings(max_length=context + 1), "max_length"),
        (SamplingSettings(max_length=length), "max_length"),
    ):
        with pytest.raises(BadInput, match=f"^sampling.{setting} ") as refused:
            new_tokens(settings, length, context, "sampling.")
        last = int(re.findall(r"\d+", str(refused.value).split("; choose ")[1])[-1])
        assert new_tokens(replace(settings, **{setting: last}), length, context) == most
