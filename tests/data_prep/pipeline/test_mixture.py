"""Weights change what is trained on and nothing on disk."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CorpusSettings, SourceSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.validate import check_settings
from malmoi.data_prep.pipeline.mixture import SLOTS, Mixture, prepare_sources
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.errors import UserError


def test_weights_and_other_sources_rebuild_nothing(tokenizer_folder: Path, tmp_path: Path) -> None:
    for name in ("law", "film"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 글\n" * 3, encoding="utf-8")
    sources = tuple(SourceSettings(name, (str(tmp_path / f"{name}.txt"),)) for name in ("law", "film"))
    corpus = CorpusSettings(sources=sources)
    first = prepare_sources(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")
    assert [source.name for source in first] == ["law", "film"]
    before = {source.folder: (source.folder / "manifest.json").stat().st_mtime_ns for source in first}
    changed = replace(corpus, sources=(replace(sources[1], weight=5.0),))
    (film,) = prepare_sources(changed, DataSettings(), tokenizer_folder, tmp_path / "out")
    assert film.weight == 5.0 and film.folder == first[1].folder
    assert (film.folder / "manifest.json").stat().st_mtime_ns == before[film.folder]
    assert read_manifest(film.folder).train.counts.documents + read_manifest(film.folder).val.counts.documents == 3


def are_seen(weights: list[float]) -> bool:
    """Whether each source that has a weight is at least one sample of a whole schedule."""
    return sum(weights) > 1e-3 and all(not weight or weight * SLOTS > sum(weights) for weight in weights)


WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(are_seen)


@given(WEIGHTS, st.integers(0, 10**14))
@settings(deadline=None, max_examples=30)
def test_shares_are_the_weights_and_no_sample_of_a_source_is_left_out(weights: list[float], start: int) -> None:
    mixture = Mixture(weights)
    sources, numbers = mixture.locate(np.arange(start, start + SLOTS))
    for source, weight in enumerate(weights):
        mine = numbers[sources == source]
        assert abs(len(mine) - weight / sum(weights) * SLOTS) <= 2
        if len(mine):
            assert np.array_equal(np.sort(mine), np.arange(mine.min(), mine.min() + len(mine)))
    one = np.array([start + SLOTS // 2])
    assert mixture.locate(one)[1][0] == numbers[SLOTS // 2]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
@settings(deadline=None, max_examples=60)
def test_every_prefix_has_each_source_within_one_sample_of_its_share(weights: list[int]) -> None:
    total, many = sum(weights), 3 * sum(weights) + 7
    sources, _ = Mixture(weights).locate(np.arange(many))
    prefixes = np.arange(1, many + 1)
    for source, weight in enumerate(weights):
        apart = np.cumsum(sources == source) * total - prefixes * weight
        assert np.abs(apart).max() < total


def test_a_prefix_of_any_length_is_fair_where_weights_are_decimals() -> None:
    """0.1, 0.2 and 0.7 are no binary fractions: rounded to slots they would drift apart by thousands."""
    mixture, length = Mixture([0.1, 0.2, 0.7]), 10
    far = 10**12
    _, numbers = mixture.locate(np.arange(far - length, far))
    sources, _ = mixture.locate(np.arange(far - length, far))
    for source, tenths in enumerate((1, 2, 7)):
        assert abs(int(numbers[sources == source].max()) + 1 - far * tenths // 10) <= 1


def test_a_schedule_of_many_odd_weights_is_fair_over_its_whole_length() -> None:
    weights = [0.12345, 0.54321, 0.00007, 0.2, 0.13327]
    sources, _ = Mixture(weights).locate(np.arange(SLOTS))
    prefixes = np.arange(1, SLOTS + 1)
    for source, weight in enumerate(weights):
        apart = np.cumsum(sources == source) - prefixes * (weight / sum(weights))
        assert np.abs(apart).max() < 2, "one for the schedule and one for a weight that is no whole number of slots"


@pytest.mark.parametrize("weights", [[1.0, 1e-6], [3.0, 5.0, 1e-5], [1e9, 2.0, 1e9]])
def test_a_source_so_light_that_no_sample_would_be_its_own_is_refused(weights: list[float], tmp_path: Path) -> None:
    lightest = min(weights)
    message = rf"weight {lightest:g} is so small beside .* set it to (\S+) or more, or to 0"
    with pytest.raises(UserError, match=message) as refused:
        Mixture(weights)
    sources = tuple(SourceSettings(str(number), ("missing",), weight) for number, weight in enumerate(weights))
    with pytest.raises(UserError, match=message):
        prepare_sources(CorpusSettings(sources=sources), DataSettings(), tmp_path, tmp_path)
    remedy = re.search(message, str(refused.value))
    assert remedy is not None
    corrected = [float(remedy[1]) if weight == lightest else weight for weight in weights]
    found, _ = Mixture(corrected).locate(np.arange(SLOTS))
    assert set(found.tolist()) == set(range(len(weights)))
    without, _ = Mixture([0.0 if weight == lightest else weight for weight in weights]).locate(np.arange(SLOTS))
    assert weights.index(lightest) not in without


def test_bad_weights_and_names_are_named(tmp_path: Path) -> None:
    for weights in ([], [0.0]):
        with pytest.raises(UserError, match="none is above 0"):
            Mixture(weights)
    for weight in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"^weight "):
            check_settings(SourceSettings("a", ("x",), weight))
    twice = CorpusSettings(sources=(SourceSettings("a", ("x",)), SourceSettings("a", ("y",))))
    with pytest.raises(UserError, match="two are called the same"):
        prepare_sources(twice, DataSettings(), tmp_path, tmp_path)
