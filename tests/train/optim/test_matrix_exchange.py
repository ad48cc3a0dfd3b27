"""Ranks that hold matrices together work on them at the same time, and on a few whole matrices each."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import malmoi.train.optim.muon
from malmoi.train.optim.matrix_exchange import HeldMatrix, HoldingRanks, in_rounds, worked_on
from malmoi.train.optim.muon import Muon
from malmoi.train.optim.spec import PieceRun
from tests.train.ranks import on_ranks, on_two_ranks

CPU = torch.device("cpu")


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 3)), max_size=40), st.integers(1, 9)
)
def test_every_matrix_has_one_rank_and_no_rank_more_than_its_share_and_one(
    shapes: list[tuple[int, int, int]], ranks: int
) -> None:
    matrices = [HeldMatrix(rows, parts * columns, parts, ()) for rows, columns, parts in shapes]
    rounds = in_rounds(matrices, ranks)
    assert sorted(number for each in rounds for number in each if number is not None) == list(range(len(matrices)))
    work = [
        sum(matrices[number].operations for each in rounds if (number := each[rank]) is not None)
        for rank in range(ranks)
    ]
    costs = [matrix.operations for matrix in matrices]
    assert max(work) <= sum(costs) / ranks + max(costs, default=0)


SHAPES = [(16, 48), (17, 16), (16, 64), (64, 16), (5, 48), (1, 8), (16, 48)]
STEPS = 3


def matrices_and_gradients() -> list[tuple[Tensor, list[Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1 + STEPS, *shape, generator=generator) for shape in SHAPES]
    return [(each[0], list(each[1:])) for each in drawn]


def stepped(places: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Matrices after some steps, each placed by `places`, in full."""
    drawn = [
        (torch.nn.Parameter(places(each)), [places(gradient) for gradient in gradients])
        for each, gradients in matrices_and_gradients()
    ]
    parameters = [parameter for parameter, _ in drawn]
    groups = [{"params": parameters[:1], "num_matrices": 3}, {"params": parameters[1:]}]
    muon = Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(STEPS):
        for parameter, gradients in drawn:
            parameter.grad = gradients[step]
        muon.step()
    return [each.full_tensor() if isinstance(each, DTensor) else each.detach() for each in parameters]


def stepped_in_pieces(ranks: int, rank: int) -> list[Tensor]:
    """The same under ZeRO's layouts: a group in one flat piece a rank, and each parameter in parts of its own."""
    drawn = matrices_and_gradients()
    size = sum(matrix.numel() for matrix, _ in drawn[1:])
    part = -(-size // ranks)
    layouts: list[tuple[Tensor, list[Tensor], list[PieceRun]]] = []
    # The first as stage 3 has it, padded; the others as stages 1 and 2 have them.
    first, gradients = drawn[0]
    each = -(-first.numel() // ranks)
    runs = tuple(max(0, min(each, first.numel() - number * each)) for number in range(ranks))
    layouts.append((cut(first, rank, each), [cut(g, rank, each) for g in gradients], [PieceRun(first.shape, 0, runs)]))
    flat = torch.cat([matrix.flatten() for matrix, _ in drawn[1:]])
    flat_gradients = [torch.cat([gradients[step].flatten() for _, gradients in drawn[1:]]) for step in range(STEPS)]
    held_runs, offset = [], 0
    for matrix, _ in drawn[1:]:
        cuts = [min(max(number * part - offset, 0), matrix.numel()) for number in range(ranks + 1)]
        runs = tuple(cuts[number + 1] - cuts[number] for number in range(ranks))
        held_runs.append(PieceRun(matrix.shape, min(part, max(0, offset - rank * part)), runs))
        offset += matrix.numel()
    layouts.append((cut(flat, rank, part), [cut(g, rank, part) for g in flat_gradients], held_runs))
    pieces = [torch.nn.Parameter(piece) for piece, _, _ in layouts]
    groups = [{"params": pieces[:1], "num_matrices": 3}, {"params": pieces[1:]}]
    muon = Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    muon.lay_out({piece: held for piece, (_, _, held) in zip(pieces, layouts, strict=True)}, CPU)
    for step in range(STEPS):
        for piece, (_, gradients, _) in zip(pieces, layouts, strict=True):
            piece.grad = gradients[step]
            muon.step()  # as DeepSpeed does, one group after the other
            piece.grad = None
    whole = []
    for piece in pieces:
        parts = [torch.empty_like(piece) for _ in range(ranks)]
        distributed.all_gather(parts, piece.detach())
        whole.append(torch.cat(parts))
    return [
        whole[0][: first.numel()].view(first.shape),
        *(
            run.view(matrix.shape)
            for run, (matrix, _) in zip(
                whole[1][:size].split([matrix.numel() for matrix, _ in drawn[1:]]), drawn[1:], strict=True
            )
        ),
    ]


def cut(tensor: Tensor, rank: int, length: int) -> Tensor:
    """A rank's part of a flat tensor, padded."""
    part = tensor.flatten()[rank * length : (rank + 1) * length]
    return torch.cat([part, part.new_zeros(length - len(part))])


RANKS = 4


def step_on_a_rank(rank: int, folder: Path) -> None:
    malmoi.train.optim.muon.has_fast_bf16 = lambda device: False
    shards = init_device_mesh("cpu", (RANKS,))
    copies = init_device_mesh("cpu", (2, 2))
    done = {
        "copied": stepped(lambda tensor: tensor.clone()),
        "shared": stepped(lambda tensor: distribute_tensor(tensor, shards, [Shard(0)])),
        "shared and copied": stepped(lambda tensor: distribute_tensor(tensor, copies, [Replicate(), Shard(0)])),
        "in flat pieces": stepped_in_pieces(RANKS, rank),
    }
    torch.save(done, folder / f"rank-{rank}.pt")


def test_ranks_take_the_step_of_one_bit_for_bit_however_they_hold_the_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malmoi.train.optim.muon, "has_fast_bf16", lambda device: False)
    on_ranks(RANKS, step_on_a_rank, tmp_path)
    alone = stepped(lambda tensor: tensor.clone())
    for rank in range(RANKS):
        for way, matrices in torch.load(tmp_path / f"rank-{rank}.pt").items():
            same = [torch.equal(one, other) for one, other in zip(alone, matrices, strict=True)]
            assert all(same), (rank, way, same)


NAMES = {"all_to_all_single": "send", "broadcast": "broadcast"}


class _Waited:
    def __init__(self, pending: Any, log: list[str]) -> None:
        self._pending, self._log = pending, log

    def wait(self) -> None:
        self._log.append("wait")
        self._pending.wait()


def log_a_rank(rank: int, folder: Path) -> None:
    log: list[str] = []
    for function, name in NAMES.items():
        real = getattr(distributed, function)

        def logged(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            log.append(name)
            return _Waited(real(*args, **kwargs), log)

        setattr(distributed, function, logged)
    logs = {}
    for way in ("shared", "copied"):
        log.clear()
        world = distributed.group.WORLD
        holding = HoldingRanks(CPU, sharing=world) if way == "shared" else HoldingRanks(CPU, copying=world)
        run = torch.zeros(8 if way == "shared" else 16)
        matrices = [HeldMatrix(4, 4, 1, (8, 8) if way == "shared" else (16,))] * 6

        def work(number: int, matrix: Tensor) -> Tensor:
            log.append("work")
            return matrix

        results = worked_on(matrices, holding, torch.float32, lambda number, run=run: run, work)
        assert len(list(results)) == len(matrices)
        logs[way] = list(log)
    (folder / f"{rank}.json").write_text(json.dumps(logs), encoding="utf-8")


def test_matrices_are_gathered_during_the_work_on_those_of_the_round_before(tmp_path: Path) -> None:
    """Else each rank would wait for the work of the others."""
    on_two_ranks(log_a_rank, tmp_path)
    for rank in range(2):
        logs = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        # Three rounds of a matrix a rank: gathered, worked on, sent back.
        assert logs["shared"][:8] == ["send", "send", "wait", "work", "send", "send", "wait", "work"]
        assert logs["shared"].count("work") == 3
        assert logs["shared"].count("send") == 6
        # The results of two rounds go out while a rank works on.
        assert logs["copied"][:7] == ["work", *["broadcast"] * 2, "work", *["broadcast"] * 2, "work"]
        assert logs["copied"].count("work") == 3


class _PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made under it hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._made = [made for made in self._made if made() is not None]
        known = {made().untyped_storage().data_ptr() for made in self._made}  # type: ignore[union-attr]
        given = {
            each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        } - known
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:
                self._made.append(weakref.ref(each))
        sizes = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for made in self._made
            if (each := made()) is not None
        }
        self.peak = max(self.peak, sum(sizes.values()))
        return result


SIDE = 64
MATRIX_BYTES = 4 * SIDE * SIDE


def peak_matrices(num_copies: int, num_shares: int) -> float:
    """Matrices' worth of bytes that rank 0 of so many fake ranks holds at most."""
    ranks = num_copies * num_shares
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        groups: list[ProcessGroup | None] = [None, None]
        if num_copies > 1:
            groups[0] = distributed.new_group(range(0, ranks, num_shares))
        if num_shares > 1:
            groups[1] = distributed.new_group(range(num_shares))
        holding = HoldingRanks(CPU, sharing=groups[1], copying=groups[0])
        runs = (SIDE * SIDE // num_shares,) * num_shares
        matrices = [HeldMatrix(SIDE, SIDE, 1, runs) for _ in range(3 * ranks)]
        own = torch.zeros(runs[0])
        with _PeakBytes() as bytes_held:
            results = worked_on(matrices, holding, torch.float32, lambda number: own + 1, lambda number, matrix: matrix)
            assert sorted(number for number, _ in results) == list(range(len(matrices)))
        return bytes_held.peak / MATRIX_BYTES
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("num_copies", "num_shares"), [(1, 2), (2, 1), (1, 64), (64, 1), (8, 8)], ids=lambda number: str(number)
)
def test_a_rank_holds_a_few_whole_matrices_however_many_ranks_there_are(num_copies: int, num_shares: int) -> None:
    assert 2 <= peak_matrices(num_copies, num_shares) <= 10
