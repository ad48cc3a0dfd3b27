from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import malmoi.evaluation.memorization
from malmoi.evaluation.memorization import VerbatimMatch, longest_matches


@dataclass(frozen=True)
class Corpus:
    tokens: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def read_into(self, start: int, out: NDArray[np.int64]) -> None:
        out[:] = self.tokens[start : start + len(out)]


def by_brute_force(text: list[int], corpus: list[int]) -> VerbatimMatch:
    substrings = {tuple(corpus[i:j]) for i in range(len(corpus)) for j in range(i + 1, len(corpus) + 1)}
    for length in range(len(text), 0, -1):
        # Of equally long ones, the automaton finds the one that ends first.
        for start in range(len(text) - length + 1):
            if tuple(text[start : start + length]) in substrings:
                return VerbatimMatch(start, length)
    return VerbatimMatch(0, 0)


few = st.lists(st.integers(0, 3), max_size=25)


@settings(deadline=None, max_examples=300)
@given(texts=st.lists(few, min_size=1, max_size=5), corpus=st.lists(st.integers(0, 4), max_size=40))
def test_the_longest_match_is_the_one_found_by_brute_force(texts: list[list[int]], corpus: list[int]) -> None:
    assert longest_matches(texts, Corpus(corpus)) == tuple(by_brute_force(text, corpus) for text in texts)


def test_matches_cross_the_chunks_that_the_corpus_is_read_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malmoi.evaluation.memorization, "CHUNK_TOKENS", 7)
    corpus = list(np.random.default_rng(0).integers(0, 50, 100))
    assert longest_matches([[99, *corpus[3:60], 99]], Corpus(corpus)) == (VerbatimMatch(1, 57),)


def test_an_empty_corpus_shares_nothing() -> None:
    assert longest_matches([[1, 2], []], Corpus([])) == (VerbatimMatch(0, 0), VerbatimMatch(0, 0))
