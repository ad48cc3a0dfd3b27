"""Weights change what is trained on and nothing on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings, SourceSettings
from data_prep.manifest import read_manifest
from data_prep.mixture import SLOTS, Mixture, prepare_sources


def test_weights_and_other_sources_rebuild_nothing(tokenizer_folder: Path, tmp_path: Path) -> None:
    for name in ("law", "film"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 글\n" * 3)
    sources = tuple(SourceSettings(name, (str(tmp_path / f"{name}.txt"),)) for name in ("law", "film"))
    corpus = CorpusSettings(sources=sources)
    first = prepare_sources(corpus, DataSettings(), tokenizer_folder, tmp_path / "out")
    assert [source.name for source in first] == ["law", "film"]
    before = {source.folder: (source.folder / "manifest.json").stat().st_mtime_ns for source in first}
    changed = replace(corpus, sources=(replace(sources[1], weight=5.0),))
    (film,) = prepare_sources(changed, DataSettings(), tokenizer_folder, tmp_path / "out")
    assert film.weight == 5.0 and film.folder == first[1].folder
    assert (film.folder / "manifest.json").stat().st_mtime_ns == before[film.folder]
    assert read_manifest(film.folder).train.counts.documents + read_manifest(film.folder).held_out.counts.documents == 3


WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda weights: sum(weights) > 1e-3)


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 10**14))
@settings(deadline=None, max_examples=30)
def test_shares_are_the_weights_and_no_sample_of_a_source_is_left_out(
    weights: list[float], seed: int, start: int
) -> None:
    mixture = Mixture(weights, seed)
    sources, numbers = mixture.locate(np.arange(start, start + SLOTS))
    for source, weight in enumerate(weights):
        mine = numbers[sources == source]
        assert abs(len(mine) - weight / sum(weights) * SLOTS) <= 1
        if len(mine):
            assert np.array_equal(np.sort(mine), np.arange(mine.min(), mine.min() + len(mine)))
    one = np.array([start + SLOTS // 2])
    assert mixture.locate(one)[1][0] == numbers[SLOTS // 2]


def test_any_stretch_is_mixed() -> None:
    sources, _ = Mixture([3, 1], 42).locate(np.arange(1000))
    assert 0.7 < float(np.mean(sources == 0)) < 0.8


def test_bad_weights_and_names_are_named(tmp_path: Path) -> None:
    for weights in ([], [0.0], [-1.0, 2.0], [float("nan")]):
        with pytest.raises(BadInput, match="weights"):
            Mixture(weights, 0)
    twice = CorpusSettings(sources=(SourceSettings("a", ("x",)), SourceSettings("a", ("y",))))
    with pytest.raises(BadInput, match="two are called the same"):
        prepare_sources(twice, DataSettings(), tmp_path, tmp_path)
