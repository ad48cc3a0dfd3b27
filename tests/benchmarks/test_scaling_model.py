"""The model of many GPUs, against cases worked out by hand."""

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling_model import (
    BACKENDS,
    BackendName,
    Cluster,
    Job,
    Link,
    Unit,
    all_reduce_seconds,
    buckets,
    efficiency,
    fitted_link,
    gather_seconds,
    gpt2_units,
    left_over,
    ring_seconds,
    sent_bytes,
    shard_seconds,
    tree_seconds,
    waiting_seconds,
)

from malmoi.configs.model import ModelSettings
from malmoi.train.models import MODELS
from tests.launching import ROOT, environment
from tests.time_limits import seconds

LINK = Link(bytes_a_second=100.0, latency=0.5)
FREE = Link(1e30, 0.0)


def test_collectives_take_what_their_formulae_say() -> None:
    assert gather_seconds(400, 4, LINK) == pytest.approx(3 * (100 / 100 + 0.5))
    assert ring_seconds(400, 4, LINK) == pytest.approx(9.0)
    assert tree_seconds(400, 8, LINK) == pytest.approx(8.0 + 3.0)
    assert ring_seconds(400, 1, LINK) == tree_seconds(400, 1, LINK) == 0


def test_a_rings_latency_grows_with_its_length_so_that_many_nodes_use_a_tree() -> None:
    cluster = Cluster(64, 1, FREE, LINK, share=1.0)
    assert all_reduce_seconds(100, cluster) == pytest.approx(tree_seconds(100, 64, LINK))
    assert all_reduce_seconds(100, Cluster(2, 1, FREE, LINK, share=1.0)) == pytest.approx(ring_seconds(100, 2, LINK))


def test_between_nodes_each_gpu_sends_its_part() -> None:
    cluster = Cluster(16, 8, FREE, Link(100.0, 0.0), share=0.5)
    assert all_reduce_seconds(800, cluster) == pytest.approx(2 * (1 / 2) * 100 / 50)
    assert shard_seconds(800, cluster) == pytest.approx((1 / 2) * 100 / 50)


def test_what_is_ready_late_is_sent_late() -> None:
    assert left_over([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], 3.0) == pytest.approx(0.5)
    assert left_over([1.0, 2.0, 3.0], [4.0, 1.0, 1.0], 3.0) == pytest.approx(4.0)
    assert left_over([1.0], [0.5], 3.0) == 0


def test_buckets_hold_all_parameters_and_close_when_full() -> None:
    units = [Unit(10, 0.5), Unit(10, 0.25), Unit(5, 0.25), Unit(100, 0.0)]
    assert buckets(units, 80) == [Unit(20, 0.75), Unit(105, 0.25)]
    assert buckets(units, 1e9) == [Unit(125, 1.0)]


def test_gpt2_has_its_parameters_and_the_embeddings_gradient_comes_last() -> None:
    units = gpt2_units(12, 768, 50304, 1024)
    shape = ModelSettings(n_layer=12, n_head=12, n_embd=768, block_size=1024)
    assert sum(unit.parameters for unit in units) == MODELS["gpt2"].num_params(shape, 50304)
    assert sum(unit.share for unit in units) == pytest.approx(1.0)
    assert units[-1].parameters == (50304 + 1024) * 768


# Two equal units; a link of 100 bytes a second between two nodes of one GPU: a gather of 4 x 100 bytes takes 2 s.
TWO = Job(units=(Unit(100, 0.5), Unit(100, 0.5)), forward=5.0, backward=10.0, bucket_bytes=1)
PAIR = Cluster(2, 1, FREE, Link(100.0, 0.0), share=1.0)


@pytest.mark.parametrize(
    ("backend", "waits"),
    [
        # 4 s a bucket from the 5th second on, the last from the 10th.
        ("ddp", 4.0),
        # 2 s a bucket, and 2 s for the weights of both.
        ("zero1", 2.0 + 2.0),
        ("zero2", 2.0 + 2.0),
        # The first unit forwards and backwards, the last gradient.
        ("zero3", 1.0 + 1.0 + 2.0),
        ("fsdp2", 1.0 + 1.0 + 2.0),
    ],
)
def test_each_backend_waits_for_what_is_not_hidden(backend: BackendName, waits: float) -> None:
    assert waiting_seconds(TWO, PAIR, backend) == pytest.approx(waits)
    assert efficiency(TWO, PAIR, backend) == pytest.approx(15 / (15 + waits))


@pytest.mark.parametrize(
    ("backend", "each_parameter"),
    [("ddp", 8), ("zero1", 4 + 2), ("zero2", 12 + 2), ("zero3", 12 + 12), ("fsdp2", 12 + 12)],
)
def test_volumes_of_three_micro_batches(backend: BackendName, each_parameter: int) -> None:
    job = Job(TWO.units, 5.0, 10.0, micro_batches=3)
    assert sent_bytes(job, 2, backend) == pytest.approx(200 / 2 * each_parameter)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_overlap_every_byte_is_waited_for(backend: BackendName) -> None:
    """On two ranks of a link without latency, which is then all that a ring and a tree have in common."""
    job = Job(TWO.units, 5.0, 10.0, micro_batches=3, overlap=False, bucket_bytes=1)
    assert waiting_seconds(job, PAIR, backend) == pytest.approx(sent_bytes(job, 2, backend) / 100)


@given(st.sampled_from(BACKENDS), st.floats(1e6, 1e12), st.floats(0, 1e-3))
def test_more_gpus_are_never_more_efficient(backend: BackendName, bandwidth: float, latency: float) -> None:
    job = Job(tuple(gpt2_units(4, 256, 8000, 128)), 0.01, 0.02)
    link = Link(bandwidth, latency)
    seen = [efficiency(job, Cluster(gpus, 8, link, link), backend) for gpus in (1, 8, 16, 64, 512, 4096)]
    assert seen[0] == 1
    assert all(more <= fewer + 1e-9 for fewer, more in pairwise(seen))


def test_the_link_of_two_measurements_gives_them_back() -> None:
    sizes = (1e3, 1e6)
    taken = (ring_seconds(1e3, 2, LINK), ring_seconds(1e6, 2, LINK))
    link = fitted_link(sizes, taken, 2)
    assert (link.bytes_a_second, link.latency) == (pytest.approx(100.0), pytest.approx(0.5))


def modeled_rows(*words: str) -> Any:
    """Run the script, and return what it models for each number of GPUs."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--only", "modeled", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["modeled"]["rows"]


def test_the_script_models_every_backend_on_other_links_and_ends_with_one_json_object() -> None:
    rows = modeled_rows("--between", "12.5e9,30e-6", "--micro_batches", "4")
    assert [row["gpus"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert all(0 < row[backend] < 1 for row in rows for backend in BACKENDS)


def test_the_recorded_efficiencies_are_those_of_the_model() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text(encoding="utf-8"))
    assert modeled_rows() == recorded["scaling"]["figures"]["modeled"]["rows"]
