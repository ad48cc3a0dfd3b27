"""What is drawn is what `transformers`' `generate` draws for the same seed, token for token."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import set_seed

from configs.schema import SamplingSettings
from inference.drawing import drawn, draws_as_torch
from inference.generate import Batching, generate
from inference.model_folder import LoadedModel, load_model
from tests.inference.fewshot_models import gpt2, llama

SETTINGS = SamplingSettings(max_new_tokens=24, seed=11, num_return_sequences=3)
PROMPTS = ["이순신 장군", "영화"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    make = {"gpt2": gpt2, "llama": llama}[request.param]
    return load_model(make(tmp_path_factory.mktemp(request.param)))


@given(st.integers(1, 40), st.integers(1, 2000), st.integers(0, 2000), st.integers(0, 2**31))
def test_a_draw_is_torchs_multinomial_and_leaves_its_generator(rows: int, words: int, barred: int, seed: int) -> None:
    if not draws_as_torch():
        pytest.skip("torch draws by another way on this machine")
    torch.manual_seed(seed)
    scores = torch.randn(rows, words) * 5
    scores[:, torch.randperm(words)[: min(barred, words - 1)]] = -torch.inf
    probabilities = scores.softmax(-1)
    torch.manual_seed(seed)
    theirs, after = torch.multinomial(probabilities, 1), torch.rand(1)
    torch.manual_seed(seed)
    assert torch.equal(drawn(probabilities), theirs)
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
def test_samples_are_generates_own(loaded: LoadedModel, change: dict[str, object], size: int) -> None:
    settings = replace(SETTINGS, **change)
    ours = [
        [token.id for token in sample]
        for result in generate(loaded, PROMPTS, settings, batching=Batching(size, logprobs=True))
        for sample in result.tokens
    ]
    theirs = []
    for first in range(0, len(PROMPTS), size):
        rows = [loaded.tokenizer(prompt)["input_ids"] for prompt in PROMPTS[first : first + size]]
        width = max(map(len, rows))
        set_seed(settings.seed)
        ids = loaded.model.generate(
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
