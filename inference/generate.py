"""Text from a model: `transformers`' `generate`, seeded so that anyone gets the same text without Malmoi."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from configs.errors import BadInput
from configs.schema import SamplingSettings
from inference.drawing import drawing, draws_as_torch
from inference.model_folder import LoadedModel
from inference.sample_output import LiveSamples, PromptSamples, TokenScore
from inference.sampling import generate_options, new_tokens, prompt_ids

DRAWING_OPTIONS = ("num_return_sequences", "temperature", "top_k", "top_p", "min_p")
"""What `inference.drawing` does in `generate`'s place."""


@dataclass(frozen=True)
class Batching:
    """What belongs to drawing many samples rather than to their look."""

    prompts: int = 1
    """Prompts generated at once."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are cut off."""
    logprobs: bool = False
    """Whether to score each new token."""


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file, one a line, blank lines left out.

    Raises:
        BadInput: the file is missing, is no UTF-8, or holds no prompt.
    """
    try:
        prompts = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file; name one with a prompt a line") from None
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{file}: not UTF-8 at byte {error.start}; convert it, as from CP949 with `iconv -f CP949 -t UTF-8`"
        ) from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    if not prompts:
        raise BadInput(f"{file}: holds no prompt; write one a line")
    return prompts


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    settings: SamplingSettings,
    console: Console | None = None,
    batching: Batching | None = None,
) -> Iterator[PromptSamples]:
    """Draw `settings.num_return_sequences` samples for each prompt.

    Args:
        console: where to show the tokens as they come, of prompts that are alone in their batch; none: nowhere.
        batching: none: one prompt at a time.

    Raises:
        BadInput: a setting is out of range, or prompt and new tokens are more than the model's context.
    """
    batching = batching or Batching()
    options = generate_options(settings)
    if batching.prompts < 1:
        raise BadInput(f"--batch {batching.prompts}: choose 1 or more")
    if not all(batching.stop):
        raise BadInput("--stop: an empty text ends every sample at once; give some text")
    if batching.stop:
        options |= {"stop_strings": list(batching.stop), "tokenizer": loaded.tokenizer}
    copies = 1
    if settings.do_sample and settings.num_beams == 1 and loaded.model.device.type == "cpu" and draws_as_torch():
        copies = settings.num_return_sequences
        options = {name: value for name, value in options.items() if name not in DRAWING_OPTIONS}
        options |= {"do_sample": False, "logits_processor": drawing(settings)}
    for batch in _batches(loaded, prompts, settings, batching.prompts):
        shown = console is not None and settings.num_beams == 1 and len(batch.prompts) == 1
        view = LiveSamples(console, loaded.tokenizer) if shown and console is not None else nullcontext()
        set_seed(settings.seed)
        with torch.no_grad(), view as streamer:
            rows = loaded.model.generate(
                **batch.inputs(loaded, copies), **options, max_new_tokens=batch.new_tokens, streamer=streamer
            )
        new = rows[:, max(map(len, batch.ids)) :].tolist()
        for number, (prompt, ids) in enumerate(zip(batch.prompts, batch.ids, strict=True)):
            count = settings.num_return_sequences
            own = [_ended(loaded, row) for row in new[number * count : (number + 1) * count]]
            drawn = [_sample(loaded, ids, row, batching) for row in own]
            yield PromptSamples(
                prompt,
                settings.seed,
                tuple(text for text, _ in drawn),
                tuple(scores for _, scores in drawn) if batching.logprobs else (),
            )


@dataclass(frozen=True)
class _Batch:
    """Prompts that are generated at once."""

    prompts: tuple[str, ...]
    ids: tuple[list[int], ...]
    new_tokens: int

    def inputs(self, loaded: LoadedModel, copies: int) -> dict[str, Any]:
        """`input_ids` and `attention_mask`, both int64[prompts * copies, longest], padded on the left.

        A row is padded with its own first token, so that a tokenizer needs no token for it. The mask hides it from the
        model and from `transformers`' repetition penalty.
        """
        width = max(map(len, self.ids))
        padded = [[row[0]] * (width - len(row)) + row for row in self.ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in self.ids]
        device = loaded.model.device
        return {
            "input_ids": torch.tensor(padded, device=device).repeat_interleave(copies, 0),
            "attention_mask": torch.tensor(mask, device=device).repeat_interleave(copies, 0),
            "pad_token_id": _padding(loaded),
        }


def _padding(loaded: LoadedModel) -> int | None:
    """The token that stands after the end of a sample whose batch goes on."""
    if loaded.tokenizer.pad_token_id is not None:
        return int(loaded.tokenizer.pad_token_id)
    ends = _end_tokens(loaded)
    return min(ends) if ends else None


def _end_tokens(loaded: LoadedModel) -> set[int]:
    ends = loaded.model.generation_config.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}


def _batches(loaded: LoadedModel, prompts: Sequence[str], settings: SamplingSettings, size: int) -> Iterator[_Batch]:
    """Prompts in order, `size` at a time; those that may grow by different numbers of tokens go apart."""
    batch: list[tuple[str, list[int], int]] = []
    for prompt in prompts:
        ids = prompt_ids(loaded.tokenizer, prompt)
        most = new_tokens(settings, len(ids), loaded.context)
        if batch and (len(batch) == size or batch[0][2] != most):
            yield _batch(batch)
            batch = []
        batch.append((prompt, ids, most))
    if batch:
        yield _batch(batch)


def _batch(rows: Sequence[tuple[str, list[int], int]]) -> _Batch:
    return _Batch(tuple(prompt for prompt, _, _ in rows), tuple(ids for _, ids, _ in rows), rows[0][2])


def _ended(loaded: LoadedModel, row: list[int]) -> list[int]:
    """New tokens up to the one that ends the text, without what pads the batch behind it."""
    ends = _end_tokens(loaded)
    last = next((number for number, token in enumerate(row, 1) if token in ends), len(row))
    row = row[:last]
    while row and row[-1] == loaded.tokenizer.pad_token_id and row[-1] not in ends:
        row.pop()
    return row


def _sample(
    loaded: LoadedModel, prompt: list[int], new: list[int], batching: Batching
) -> tuple[str, tuple[TokenScore, ...]]:
    """The text of a sample up to its first stop text, and the scores of its new tokens."""
    text = _decoded(loaded, prompt + new)
    start = len(_decoded(loaded, prompt))
    cuts = [at for stop in batching.stop if (at := text.find(stop, start)) >= 0]
    if cuts:
        text = text[: min(cuts)]
        kept = next((n for n in range(len(new) + 1) if len(_decoded(loaded, prompt + new[:n])) >= len(text)), len(new))
        new = new[:kept]
    return text, token_scores(loaded, prompt, new) if batching.logprobs else ()


def _decoded(loaded: LoadedModel, ids: list[int]) -> str:
    text: str = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def token_scores(loaded: LoadedModel, prompt: list[int], new: list[int]) -> tuple[TokenScore, ...]:
    """The log-probability of each of the tokens `new` after `prompt`, which must hold one token or more."""
    if not new:
        return ()
    ids = torch.tensor([prompt + new], device=loaded.model.device)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
    names = loaded.tokenizer.convert_ids_to_tokens(new)
    return tuple(TokenScore(*each) for each in zip(names, new, logprobs, strict=True))
