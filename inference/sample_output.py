"""Show the samples of a prompt, live or finished, on the terminal and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability."""

    token: str
    id: int
    logprob: float
    """Natural logarithm of its probability under the model, before temperature, top_k and the like."""


@dataclass(frozen=True)
class PromptSamples:
    """The samples of one prompt, each of which begins with the prompt."""

    prompt: str
    seed: int
    samples: tuple[str, ...]
    tokens: tuple[tuple[TokenScore, ...], ...] = ()
    """The new tokens of each sample, where log-probabilities were asked for."""


class LiveSamples(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """A context that shows all samples of a prompt as they grow; the cursor is hidden meanwhile."""

    def __init__(self, console: Console, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[list[int]] = []
        self._prompt: list[int] | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's ids first, then one new id a sample."""
        if self._prompt is None:
            self._prompt = value.reshape(-1, value.shape[-1])[0].tolist()
            return
        if not self._ids:
            self._ids = [list(self._prompt) for _ in range(len(value))]
        for row, token in zip(self._ids, value.tolist(), strict=True):
            row.append(token)
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in self._ids]
        shown = "\n\n".join(f"{number}  {text}" for number, text in enumerate(texts, 1))
        self._live.update(Text(shown), refresh=True)

    def end(self) -> None:
        """Do nothing: the view is closed on leaving the context, also by an exception."""


def samples_as_json(results: Sequence[PromptSamples]) -> str:
    """Return one JSON object: `prompt`, `seed`, `samples`, and `tokens` if asked for; for several prompts a list of
    them in `results`."""
    records = [_as_record(result) for result in results]
    return json.dumps(records[0] if len(records) == 1 else {"results": records}, ensure_ascii=False)


def _as_record(result: PromptSamples) -> dict[str, Any]:
    record: dict[str, Any] = {"prompt": result.prompt, "seed": result.seed, "samples": list(result.samples)}
    if result.tokens:
        record["tokens"] = [[asdict(token) for token in sample] for sample in result.tokens]
    return record


def print_samples(console: Console, result: PromptSamples) -> None:
    """Show the samples of one prompt, numbered."""
    console.print(f"{result.prompt}  (seed {result.seed})", style="bold", markup=False, highlight=False)
    for number, text in enumerate(result.samples, 1):
        console.print(f"\n[{number}] ", style="dim", markup=False, end="")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        if result.tokens:
            scored = "  ".join(f"{token.token} {token.logprob:.2f}" for token in result.tokens[number - 1])
            console.print(scored, style="dim", markup=False, highlight=False, soft_wrap=True)
