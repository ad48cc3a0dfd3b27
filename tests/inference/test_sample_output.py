import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from malmoi.configs.outputs import SamplingSettings
from malmoi.inference.generate import sample_prompts
from malmoi.inference.model_folder import load_model
from malmoi.inference.sample_output import LiveSamples
from tests.evaluation.fewshot.fewshot_models import gpt2

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, MemoryError])
def test_the_terminal_is_as_it_was_however_generation_ends(tmp_path: Path, error: type[BaseException] | None) -> None:
    loaded = load_model(gpt2(tmp_path / "model"))
    settings = SamplingSettings(max_new_tokens=8, num_return_sequences=2, min_new_tokens=8)
    passes, stdout, screen = 0, sys.stdout, io.StringIO()

    def end_early(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 5 and error is not None:
            raise error

    loaded.model.register_forward_pre_hook(end_early)
    console = Console(file=screen, force_terminal=True)
    results = sample_prompts(loaded, ["이순신"], settings, console=console)
    if error is None:
        assert len(next(results).samples) == 2
    else:
        with pytest.raises(error):
            next(results)
    shown = screen.getvalue()
    assert shown.count("이순신") >= 2 * 4, "both samples, after each pass"
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert sys.stdout is stdout


def test_brackets_in_a_growing_sample_are_text(tmp_path: Path) -> None:
    tokenizer, screen = load_model(gpt2(tmp_path / "model")).tokenizer, io.StringIO()
    with LiveSamples(Console(file=screen, force_terminal=True), tokenizer) as live:
        live.put(torch.tensor([tokenizer("[red]")["input_ids"]]))
        for token in tokenizer("[/b] [/red]")["input_ids"]:
            live.put(torch.tensor([token]))
    assert "1  [red][/b] [/red]" in screen.getvalue()
