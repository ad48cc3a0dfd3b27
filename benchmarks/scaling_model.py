"""What training on many GPUs costs beside computing: a model in closed form. docs/scaling.md has the formulae.

Seconds, bytes, bytes a second. Pure functions; `benchmarks/scaling.py` prints and checks them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BackendName = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
BACKENDS: tuple[BackendName, ...] = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
HALF, FULL = 2, 4
"""Bytes of a number in 16 bits and in fp32."""


@dataclass(frozen=True)
class Link:
    """What a GPU sends through, one way."""

    bytes_a_second: float
    latency: float
    """Of one message."""


LINKS = {
    # NVIDIA H100 data sheet: 900 GB/s of NVLink, both ways together.
    "nvlink4": Link(450e9, 3e-6),
    # NVIDIA A100 data sheet: 600 GB/s of NVLink, both ways together.
    "nvlink3": Link(300e9, 3e-6),
    # InfiniBand NDR, 400 Gbit/s, an adapter a GPU as in NVIDIA's DGX H100.
    "infiniband": Link(50e9, 5e-6),
    # IEEE 802.3, 100 and 25 Gbit/s, through TCP.
    "ethernet100": Link(12.5e9, 30e-6),
    "ethernet25": Link(3.125e9, 30e-6),
}
"""Nominal bandwidths; the latencies are assumptions of this model, of the usual order."""


@dataclass(frozen=True)
class Cluster:
    """GPUs, the links inside a node, and each GPU's own to the other nodes."""

    gpus: int
    gpus_a_node: int
    inside: Link
    between: Link
    share: float = 0.8
    """Of a link's nominal bandwidth that a collective reaches."""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_a_node)

    @property
    def in_a_node(self) -> int:
        return min(self.gpus, self.gpus_a_node)


def gather_seconds(size: float, ranks: int, link: Link) -> float:
    """Time an all-gather or reduce-scatter of `size` bytes in all, around a ring: (n - 1) messages of size / n."""
    if ranks < 2:
        return 0.0
    return (ranks - 1) * (size / ranks / link.bytes_a_second + link.latency)


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """Time an all-reduce around a ring: a reduce-scatter and an all-gather."""
    return 2 * gather_seconds(size, ranks, link)


def tree_seconds(size: float, ranks: int, link: Link) -> float:
    """Time an all-reduce up and down a pipelined double binary tree: all bytes twice, and two messages a level."""
    if ranks < 2:
        return 0.0
    return 2 * size / link.bytes_a_second + 2 * math.ceil(math.log2(ranks)) * link.latency


def reached(link: Link, share: float) -> Link:
    """Return `link` at the share of its bandwidth that is reached."""
    return Link(link.bytes_a_second * share, link.latency)


def all_reduce_seconds(size: float, cluster: Cluster) -> float:
    """Time a reduce-scatter in the nodes, the faster all-reduce of each GPU's part between them, and an all-gather."""
    inside, between = reached(cluster.inside, cluster.share), reached(cluster.between, cluster.share)
    part = size / cluster.in_a_node
    outer = min(ring_seconds(part, cluster.nodes, between), tree_seconds(part, cluster.nodes, between))
    return ring_seconds(size, cluster.in_a_node, inside) + outer


def shard_seconds(size: float, cluster: Cluster) -> float:
    """Time an all-gather, or reduce-scatter, of `size` bytes over all GPUs: between the nodes, then in them."""
    inside, between = reached(cluster.inside, cluster.share), reached(cluster.between, cluster.share)
    part = size / cluster.in_a_node
    return gather_seconds(part, cluster.nodes, between) + gather_seconds(size, cluster.in_a_node, inside)


@dataclass(frozen=True)
class Unit:
    """Parameters whose gradient is ready together, in the order of the backward pass."""

    parameters: int
    share: float
    """Of the backward pass's time, which it takes."""


def gpt2_units(layers: int, width: int, vocab_size: int, block_size: int) -> list[Unit]:
    """Return the output matrix's time, the blocks, and last the embedding, whose gradient is complete only then: it is
    the output matrix too."""
    block = 12 * width * width + 13 * width
    head = vocab_size * width
    work = head + layers * (block + 2 * width * block_size)
    blocks = [Unit(block, (block + 2 * width * block_size) / work) for _ in range(layers)]
    return [Unit(2 * width, head / work), *blocks, Unit(head + block_size * width, 0.0)]


def buckets(units: Sequence[Unit], most_bytes: float) -> list[Unit]:
    """Join units until a bucket holds `most_bytes` of fp32 gradients or more."""
    joined: list[Unit] = []
    parameters, share = 0, 0.0
    for unit in units:
        parameters, share = parameters + unit.parameters, share + unit.share
        if parameters * FULL >= most_bytes:
            joined.append(Unit(parameters, share))
            parameters, share = 0, 0.0
    return [*joined, Unit(parameters, share)] if parameters or share else joined


def left_over(ready: Sequence[float], seconds: Sequence[float], end: float) -> float:
    """Return the seconds after `end` until all is sent, one piece after another, each from when it is `ready`."""
    sent = 0.0
    for at, takes in zip(ready, seconds, strict=True):
        sent = max(sent, at) + takes
    return max(0.0, sent - end)


@dataclass(frozen=True)
class Job:
    """What one GPU does in an optimizer step."""

    units: tuple[Unit, ...]
    forward: float
    """Seconds of one micro-batch."""
    backward: float
    micro_batches: int = 1
    bucket_bytes: float = 25 * 2**20
    overlap: bool = True
    """Whether links work while the GPU computes; a CPU's cores do both, one after the other."""

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)

    @property
    def computing(self) -> float:
        return self.micro_batches * (self.forward + self.backward)


def reduced_after_backward(job: Job, seconds_of: Sequence[float], pieces: Sequence[Unit]) -> float:
    """Return what of the exchange of `pieces` outlasts the backward pass."""
    if not job.overlap:
        return sum(seconds_of)
    ready, done = [], 0.0
    for piece in pieces:
        done += piece.share
        ready.append(done * job.backward)
    return left_over(ready, seconds_of, job.backward)


def gathered_too_late(job: Job, units: Sequence[Unit], seconds_of: Sequence[float], computing: float) -> float:
    """Return the wait for gathering `units` one ahead: the first, and of each other what outlasts the one before."""
    if not job.overlap:
        return sum(seconds_of)
    waits = seconds_of[0]
    for before, takes in zip(units, seconds_of[1:], strict=False):
        waits += max(0.0, takes - before.share * computing)
    return waits


def waiting_seconds(job: Job, cluster: Cluster, backend: BackendName) -> float:
    """Return the seconds of an optimizer step in which a GPU only waits for links."""
    units = job.units
    if backend == "ddp":
        pieces = buckets(units, job.bucket_bytes)
        return reduced_after_backward(
            job, [all_reduce_seconds(piece.parameters * FULL, cluster) for piece in pieces], pieces
        )
    halves = [shard_seconds(unit.parameters * HALF, cluster) for unit in units]
    if backend in ("zero1", "zero2"):
        pieces = buckets(units, job.bucket_bytes)
        seconds = [shard_seconds(piece.parameters * FULL, cluster) for piece in pieces]
        times = 1 if backend == "zero1" else job.micro_batches
        # The new weights are gathered when the step is done, with nothing to compute beside it.
        return times * reduced_after_backward(job, seconds, pieces) + shard_seconds(job.parameters * HALF, cluster)
    gathering = job.micro_batches * (
        gathered_too_late(job, units[::-1], halves[::-1], job.forward)
        + gathered_too_late(job, units, halves, job.backward)
    )
    full = [shard_seconds(unit.parameters * FULL, cluster) for unit in units]
    return gathering + job.micro_batches * reduced_after_backward(job, full, units)


def sent_bytes(job: Job, ranks: int, backend: BackendName) -> float:
    """Return the bytes that a GPU sends in an optimizer step."""
    once = (ranks - 1) / ranks * job.parameters
    micro_batches = job.micro_batches
    return (
        once
        * {
            "ddp": 2 * FULL,
            "zero1": FULL + HALF,
            "zero2": micro_batches * FULL + HALF,
            "zero3": micro_batches * (2 * HALF + FULL),
            "fsdp2": micro_batches * (2 * HALF + FULL),
        }[backend]
    )


def efficiency(job: Job, cluster: Cluster, backend: BackendName) -> float:
    """Return the speed of all GPUs over that of one times their number, each computing the same."""
    return job.computing / (job.computing + waiting_seconds(job, cluster, backend))


def fitted_link(sizes: tuple[float, float], seconds: tuple[float, float], ranks: int) -> Link:
    """Return the link with which `ring_seconds` of two sizes are what was measured."""
    slope = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    bandwidth = 2 * (ranks - 1) / ranks / slope
    latency = seconds[0] / (2 * (ranks - 1)) - sizes[0] / ranks / bandwidth
    return Link(bandwidth, max(0.0, latency))
