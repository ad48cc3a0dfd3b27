"""The longest runs of tokens that texts share with a training corpus of any size, exactly.

The texts become one suffix automaton (Blumer et al. 1985), which holds each of their runs once; the corpus then passes
through it a piece at a time. Time is linear in both, memory in the texts alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from inference.score import Tokens

PIECE = 1 << 20
Int = NDArray[np.int64]


@dataclass(frozen=True)
class SharedRun:
    """The longest run of one text that stands in the corpus too."""

    start: int
    """First token of the run in the text."""
    tokens: int


@dataclass(frozen=True)
class _Automaton:
    """States with their transitions, those of a state in a row and sorted by token."""

    edge_starts: Int
    """int64[states + 1]: where a state's transitions begin."""
    edge_tokens: Int
    edge_states: Int
    links: Int
    """int64[states]: the state of the longest shorter suffix that is another state; -1 at the root."""
    lengths: Int
    """int64[states]: tokens of a state's longest run."""
    ends: tuple[Int, ...]
    """For each text, the state that each of its prefixes ends in."""


def longest_shared_runs(texts: Sequence[Sequence[int]], corpus: Tokens) -> tuple[SharedRun, ...]:
    """The longest run of each text that `corpus` holds as it stands; of several, the first."""
    automaton = _automaton(texts)
    best = np.zeros(len(automaton.links), dtype=np.int64)
    buffer = np.empty(PIECE, dtype=np.int64)
    place = np.zeros(2, dtype=np.int64)
    for start in range(0, len(corpus), PIECE):
        piece = buffer[: min(PIECE, len(corpus) - start)]
        corpus.read_into(start, piece)
        _walk(piece, place, automaton.edge_starts, automaton.edge_tokens, automaton.edge_states, automaton.links,
              automaton.lengths, best)  # fmt: skip
    # A run that was met is met with all its suffixes.
    for state in np.argsort(-automaton.lengths, kind="stable"):
        link = automaton.links[state]
        if link >= 0 and best[state]:
            best[link] = automaton.lengths[link]
    found = []
    for ends in automaton.ends:
        longest = SharedRun(0, 0)
        for position, state in enumerate(ends.tolist(), 1):
            while best[state] == 0 and state > 0:
                state = int(automaton.links[state])
            if best[state] > longest.tokens:
                longest = SharedRun(position - int(best[state]), int(best[state]))
        found.append(longest)
    return tuple(found)


def _automaton(texts: Sequence[Sequence[int]]) -> _Automaton:
    """The automaton of several texts: each begins again at the root."""
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
    piece: Int, place: Int, edge_starts: Int, edge_tokens: Int, edge_states: Int, links: Int, lengths: Int, best: Int
) -> None:
    """Pass tokens through the automaton from `place` (state, tokens matched) on; `best` is a state's longest match."""
    state, matched = place[0], place[1]
    for token in piece:
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
    place[0], place[1] = state, matched
