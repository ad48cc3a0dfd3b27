"""What a rank of many holds, counted on fake ranks, is at most what `--dry_run` computes."""

from dataclasses import replace

import pytest
from backends import USABLE
from fake_ranks import LAYOUTS, PRESETS, RANKS, Layout, count

import malmoi

PLAIN = {layout.name: layout for layout in LAYOUTS}


def shallow(preset: str, n_layer: int) -> malmoi.RunSettings:
    """A preset with fewer layers, whose bytes grow by the same with each."""
    settings = malmoi.load_config(preset)
    return replace(settings, model=replace(settings.model, n_layer=n_layer))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("preset", "n_layer"), [("gpt2-small", 12), ("gpt3-13b", 6)])
def test_no_more_is_held_at_the_peak_than_is_computed(preset: str, n_layer: int, layout: Layout) -> None:
    seen = count(shallow(preset, n_layer), layout, 8)
    state = seen.weights + seen.gradients + seen.moments
    # Shards are padded to the same size.
    assert state == pytest.approx(seen.computed_state, rel=1e-3)
    assert 0 < seen.rest <= seen.computed_rest
    assert seen.computed <= 1.25 * seen.counted, "nor much less"


def test_state_is_shared_by_the_ranks_of_a_copy() -> None:
    settings = shallow("gpt2-small", 2)
    full, few, many = (count(settings, PLAIN[name], ranks) for name, ranks in (("ddp", 8), ("fsdp2", 8), ("fsdp2", 64)))
    copies = count(settings, PLAIN["hsdp"], 64)
    for name in ("weights", "gradients", "moments"):
        assert getattr(few, name) * 8 == pytest.approx(getattr(full, name), rel=1e-3)
        assert getattr(many, name) * 64 == pytest.approx(getattr(full, name), rel=1e-2)
        assert getattr(copies, name) == pytest.approx(getattr(few, name), rel=1e-3)


@pytest.mark.parametrize(("preset", "gib"), [("gpt3-13b", 40), ("gpt3-6.7b", 24)])
def test_the_largest_presets_fit_on_eight_gpus_by_what_is_counted(preset: str, gib: int) -> None:
    """Each layer adds the same."""
    few, more = (count(shallow(preset, n_layer), PLAIN["fsdp2 + checkpointing"], 8).counted for n_layer in (3, 5))
    n_layer = malmoi.load_config(preset).model.n_layer
    assert few + (more - few) / 2 * (n_layer - 3) <= USABLE * gib * 2**30


@pytest.mark.soak
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_more_is_held_by_any_preset(preset: str, ranks: int, layout: Layout) -> None:
    seen = count(malmoi.load_config(preset), layout, ranks)
    assert seen.counted <= seen.computed
