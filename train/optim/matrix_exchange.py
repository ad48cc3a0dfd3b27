"""Matrices that ranks hold together, each worked on by one of them: it gets the whole matrix and sends the result back.

They go in rounds, of one matrix a rank: while a rank works on its matrix, the other ranks work on theirs, and those of
the next round are being gathered. So a rank never holds more than a few whole matrices, however many ranks there are.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

RESULTS_IN_FLIGHT = 4
"""Results of a matrix's size that are sent while a rank works on."""


@dataclass(frozen=True)
class HeldMatrix:
    """A parameter whose numbers, row by row, lie in runs on the ranks that share it, one rank's after another's."""

    rows: int
    columns: int
    parts: int
    """Matrices side by side in it, each of which is worked on by itself."""
    runs: tuple[int, ...]
    """How many numbers each of those ranks holds."""

    @property
    def operations(self) -> int:
        """About those of a Newton-Schulz iteration."""
        short, long = sorted((self.rows, self.columns // self.parts))
        return self.parts * (2 * short * short * long + short**3)


@dataclass(frozen=True)
class HoldingRanks:
    """Who holds some matrices."""

    device: torch.device
    """Of what is sent."""
    sharing: ProcessGroup | None = None
    """The ranks that hold runs of each; None: a rank holds them whole."""
    copying: ProcessGroup | None = None
    """The ranks that hold the same as this one; None: no other does."""

    @property
    def num_shares(self) -> int:
        """Ranks that hold one matrix together."""
        return distributed.get_world_size(self.sharing) if self.sharing else 1

    @property
    def share(self) -> int:
        """Which of them this rank is."""
        return distributed.get_rank(self.sharing) if self.sharing else 0

    @property
    def num_copies(self) -> int:
        """Ranks that hold the same as this one, it included."""
        return distributed.get_world_size(self.copying) if self.copying else 1

    @property
    def copy(self) -> int:
        """Which of them this rank is."""
        return distributed.get_rank(self.copying) if self.copying else 0


def holding_ranks(parameter: Tensor) -> HoldingRanks:
    """Return who holds a parameter: the dimensions of its mesh that shard it share it, the others copy it. A parameter
    without a mesh is on every rank."""
    if not isinstance(parameter, DTensor):
        has_others = distributed.is_initialized() and distributed.get_world_size() > 1
        return HoldingRanks(parameter.device, copying=distributed.group.WORLD if has_others else None)
    mesh, sharing, copying = parameter.device_mesh, None, None
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_shard():
            assert placement.is_shard(0), "runs of rows are what is gathered"
            sharing = mesh.get_group(dimension)
        else:
            copying = mesh.get_group(dimension)
    return HoldingRanks(parameter.to_local().device, sharing, copying)


def held_matrix(parameter: Tensor, parts: int, num_shares: int) -> HeldMatrix:
    """Return how a 2-D parameter is held whose rows are shared as torch shards them: evenly, the last ones fewer."""
    rows, columns = parameter.shape
    each = -(-rows // num_shares)
    runs = (columns * max(0, min(each, rows - number * each)) for number in range(num_shares))
    return HeldMatrix(rows, columns, parts, tuple(runs))


def worked_on(
    matrices: Sequence[HeldMatrix],
    ranks: HoldingRanks,
    dtype: torch.dtype,
    run_of: Callable[[int], Tensor],
    work: Callable[[int, Tensor], Tensor],
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number and this rank's run of the result of every matrix; every rank must go through all.

    Args:
        dtype: in which matrices are sent and worked on.
        run_of: this rank's run of a matrix, [n], of `dtype`.
        work: from a whole matrix, [rows, columns], to one of the same shape and dtype.
    """
    rounds = in_rounds(matrices, ranks.num_shares * ranks.num_copies)
    groups = [
        [each[copy * ranks.num_shares : (copy + 1) * ranks.num_shares] for copy in range(ranks.num_copies)]
        for each in rounds
    ]
    exchange = _Exchange(matrices, ranks, dtype)
    gathers = (exchange.gather(of_copies[ranks.copy], run_of) for of_copies in groups)
    coming = next(gathers, None)
    in_flight: deque[_Sent] = deque()
    for of_copies in groups:
        gathered, coming = coming, next(gathers, None)
        assert gathered is not None
        mine = of_copies[ranks.copy][ranks.share]
        result = None
        if mine is not None:
            matrix = gathered.whole().view(matrices[mine].rows, matrices[mine].columns)
            result = work(mine, matrix).reshape(-1)
        del gathered
        for sent in exchange.results(of_copies, result):
            in_flight.append(sent)
            if len(in_flight) > RESULTS_IN_FLIGHT:
                yield from exchange.runs(in_flight.popleft())
    while in_flight:
        yield from exchange.runs(in_flight.popleft())


Slots = Sequence[int | None]
"""The matrices of a round by the rank that works on them, of those that share them; None: it has none."""


@dataclass
class _Gather:
    """A rank's own matrix, while it is gathered."""

    matrix: Tensor
    pending: distributed.Work | None
    sent: Tensor | None
    """Kept until it has been sent."""

    def whole(self) -> Tensor:
        if self.pending is not None:
            self.pending.wait()
        self.sent = None
        return self.matrix


@dataclass(frozen=True)
class _Sent:
    """This rank's runs of the results of some matrices, while they are sent."""

    slots: Slots
    runs: Tensor
    pending: distributed.Work | None
    result: Tensor | None
    """Kept until it has been sent."""


@dataclass(frozen=True)
class _Exchange:
    matrices: Sequence[HeldMatrix]
    ranks: HoldingRanks
    dtype: torch.dtype

    def run_sizes(self, slots: Slots) -> list[int]:
        return [0 if number is None else self.matrices[number].runs[self.ranks.share] for number in slots]

    def gather(self, slots: Slots, run_of: Callable[[int], Tensor]) -> _Gather:
        """Send this rank's runs to those that work on their matrices, and receive its own matrix."""
        ranks, mine = self.ranks, slots[self.ranks.share]
        numbers = [number for number in slots if number is not None]
        if not numbers:
            return _Gather(torch.empty(0), None, None)
        if ranks.num_shares == 1:
            return _Gather(run_of(numbers[0]).to(ranks.device), None, None)
        sent = torch.cat([run_of(number) for number in numbers]).to(ranks.device)
        sizes = [0] * ranks.num_shares if mine is None else list(self.matrices[mine].runs)
        matrix = torch.empty(sum(sizes), dtype=sent.dtype, device=sent.device)
        pending = distributed.all_to_all_single(
            matrix, sent, sizes, self.run_sizes(slots), group=ranks.sharing, async_op=True
        )
        return _Gather(matrix, pending, sent)

    def results(self, of_copies: Sequence[Slots], result: Tensor | None) -> Iterator[_Sent]:
        """Send a result back to the ranks that share its matrix, and from each of them to its copies."""
        ranks = self.ranks
        own = self._shared(of_copies[ranks.copy], result)
        if ranks.num_copies == 1:
            yield own
            return
        if own.pending is not None:
            own.pending.wait()
        for copy, slots in enumerate(of_copies):
            size = sum(self.run_sizes(slots))
            if not any(number is not None for number in slots):
                continue
            runs = own.runs if copy == ranks.copy else torch.empty(size, dtype=self.dtype, device=ranks.device)
            pending = distributed.broadcast(runs, group=ranks.copying, group_src=copy, async_op=True)
            yield _Sent(slots, runs, pending, None)

    def _shared(self, slots: Slots, result: Tensor | None) -> _Sent:
        ranks, mine = self.ranks, slots[self.ranks.share]
        if ranks.num_shares == 1 or all(number is None for number in slots):
            return _Sent(slots, torch.empty(0) if result is None else result, None, None)
        sizes = [0] * ranks.num_shares if mine is None else list(self.matrices[mine].runs)
        runs = torch.empty(sum(self.run_sizes(slots)), dtype=self.dtype, device=ranks.device)
        result = runs.new_empty(0) if result is None else result
        pending = distributed.all_to_all_single(
            runs, result, self.run_sizes(slots), sizes, group=ranks.sharing, async_op=True
        )
        return _Sent(slots, runs, pending, result)

    def runs(self, sent: _Sent) -> Iterator[tuple[int, Tensor]]:
        if sent.pending is not None:
            sent.pending.wait()
        runs = torch.split(sent.runs, self.run_sizes(sent.slots))
        for number, run in zip(sent.slots, runs, strict=True):
            if number is not None:
                yield number, run


def in_rounds(matrices: Sequence[HeldMatrix], ranks: int) -> list[Slots]:
    """Return who works on which matrix, round by round: for each rank a matrix's number, or None.

    The largest come first, each to the rank with the least work so far, so that those of a round take about as long.
    """
    owners = matrix_owners(matrices, ranks)
    by_size = _largest_first(matrices)
    lists = [[number for number in by_size if owners[number] == rank] for rank in range(ranks)]
    return [
        [each[turn] if turn < len(each) else None for each in lists] for turn in range(max(map(len, lists), default=0))
    ]


def matrix_owners(matrices: Sequence[HeldMatrix], ranks: int) -> list[int]:
    """Return which rank works on each matrix: the largest first, each to the rank with the least work so far."""
    work, owners = [0] * ranks, [0] * len(matrices)
    for number in _largest_first(matrices):
        owners[number] = min(range(ranks), key=lambda rank: (work[rank], rank))
        work[owners[number]] += matrices[number].operations
    return owners


def _largest_first(matrices: Sequence[HeldMatrix]) -> list[int]:
    return sorted(range(len(matrices)), key=lambda number: (-matrices[number].operations, number))
