"""The longest verbatim matches between texts and a training corpus of any size, exact to the token.

The texts become one suffix automaton (Blumer et al. 1985), which holds each of their substrings once; the corpus is
then passed through it a chunk at a time. Time is linear in both, memory in the texts alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from malmoi.evaluation.perplexity import Tokens

CHUNK_TOKENS = 1 << 20
Int = NDArray[np.int64]


@dataclass(frozen=True)
class VerbatimMatch:
    """The longest span of one text that the corpus contains."""

    start: int
    """First token of the span in the text."""
    tokens: int
    """Tokens of the span; 0: no token of the text is in the corpus."""


def longest_matches(texts: Sequence[Sequence[int]], corpus: Tokens) -> tuple[VerbatimMatch, ...]:
    """Return the longest match of each text with `corpus`; of several, the one that ends first."""
    automaton = _automaton(texts)
    best = np.zeros(len(automaton.links), dtype=np.int64)
    buffer = np.empty(CHUNK_TOKENS, dtype=np.int64)
    state_and_length = np.zeros(2, dtype=np.int64)
    for start in range(0, len(corpus), CHUNK_TOKENS):
        chunk = buffer[: min(CHUNK_TOKENS, len(corpus) - start)]
        corpus.read_into(start, chunk)
        _walk(chunk, state_and_length, automaton.edge_starts, automaton.edge_tokens, automaton.edge_states,
              automaton.links, automaton.lengths, best)  # fmt: skip
    # A substring that was met is met with all its suffixes.
    for state in np.argsort(-automaton.lengths, kind="stable"):
        link = automaton.links[state]
        if link >= 0 and best[state]:
            best[link] = automaton.lengths[link]
    found = []
    for ends in automaton.ends:
        longest = VerbatimMatch(0, 0)
        for position, state in enumerate(ends.tolist(), 1):
            while best[state] == 0 and state > 0:
                state = int(automaton.links[state])
            if best[state] > longest.tokens:
                longest = VerbatimMatch(position - int(best[state]), int(best[state]))
        found.append(longest)
    return tuple(found)


@dataclass(frozen=True)
class _Automaton:
    """States with their transitions, which are grouped by state and sorted by token."""

    edge_starts: Int
    """int64[states + 1]: index of a state's first transition."""
    edge_tokens: Int
    edge_states: Int
    links: Int
    """int64[states]: the suffix link, to the state of the longest shorter suffix; -1 at the root."""
    lengths: Int
    """int64[states]: tokens of a state's longest substring."""
    ends: tuple[Int, ...]
    """For each text, the state that each of its prefixes ends in."""


def _automaton(texts: Sequence[Sequence[int]]) -> _Automaton:
    """Return the automaton of several texts, each of which starts at the root."""
    edges: list[dict[int, int]] = [{}]
    links, lengths = [-1], [0]
    ends = []

    def clone(state: int, token: int, child: int) -> int:
        edges.append(dict(edges[child]))
        links.append(links[child])
        lengths.append(lengths[state] + 1)
        copy = len(edges) - 1
        links[child] = copy
        while state >= 0 and edges[state].get(token) == child:
            edges[state][token] = copy
            state = links[state]
        return copy

    def extended(last: int, token: int) -> int:
        if token in edges[last]:
            child = edges[last][token]
            return child if lengths[child] == lengths[last] + 1 else clone(last, token, child)
        edges.append({})
        links.append(0)
        lengths.append(lengths[last] + 1)
        new, state = len(edges) - 1, last
        while state >= 0 and token not in edges[state]:
            edges[state][token] = new
            state = links[state]
        if state >= 0:
            child = edges[state][token]
            links[new] = child if lengths[child] == lengths[state] + 1 else clone(state, token, child)
        return new

    for text in texts:
        last = 0
        own = []
        for token in text:
            last = extended(last, int(token))
            own.append(last)
        ends.append(np.array(own, dtype=np.int64))
    ordered = [sorted(each.items()) for each in edges]
    flat = [pair for each in ordered for pair in each]
    return _Automaton(
        np.cumsum([0, *map(len, ordered)], dtype=np.int64),
        np.array([token for token, _ in flat], dtype=np.int64),
        np.array([state for _, state in flat], dtype=np.int64),
        np.array(links, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        tuple(ends),
    )


@numba.njit(cache=True)  # type: ignore[untyped-decorator]  # numba is untyped
def _walk(
    chunk: Int,
    state_and_length: Int,
    edge_starts: Int,
    edge_tokens: Int,
    edge_states: Int,
    links: Int,
    lengths: Int,
    best: Int,
) -> None:
    """Pass tokens through the automaton, and update the state, the tokens matched and each state's longest match."""
    state, matched = state_and_length[0], state_and_length[1]
    for token in chunk:
        while True:
            low, high = edge_starts[state], edge_starts[state + 1]
            end = high
            while low < high:
                middle = (low + high) // 2
                if edge_tokens[middle] < token:
                    low = middle + 1
                else:
                    high = middle
            if low < end and edge_tokens[low] == token:
                state = edge_states[low]
                matched += 1
                break
            if state == 0:
                matched = 0
                break
            state = links[state]
            matched = lengths[state]
        if matched > best[state]:
            best[state] = matched
    state_and_length[0], state_and_length[1] = state, matched
