"""Generate text: `transformers`' `generate`, seeded so that anyone gets the same text without Malmoi."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from malmoi.configs.commands import with_overrides
from malmoi.configs.outputs import SamplingSettings
from malmoi.errors import UserError
from malmoi.inference.model_folder import LoadedModel, as_loaded
from malmoi.inference.sample_output import LiveSamples, PromptSamples, TokenScore
from malmoi.inference.sampling import (
    SAMPLED_HERE,
    generate_arguments,
    num_new_tokens,
    prompt_ids,
    samples_as_torch,
    sampling_processors,
)


def generate(
    model: LoadedModel | str | Path,
    prompts: str | Sequence[str],
    settings: SamplingSettings | None = None,
    *,
    batch_size: int = 1,
    stop: Sequence[str] = (),
    logprobs: bool = False,
    never: Sequence[int] = (),
    **sampling: Any,
) -> list[PromptSamples]:
    """Sample texts that begin with each of `prompts`.

        [result] = generate("runs/demo/model", "이순신", num_return_sequences=2, temperature=0.8)
        print(result.samples[0])

    Args:
        model: a model folder, or what `load_model` returned.
        prompts: one prompt or several; the seed is set anew before each batch.
        settings: how to sample; none: the defaults of `SamplingSettings`, whose `prompt` is not used here.
        batch_size: prompts in a batch; when sampling, above 1 a prompt's samples depend on the others of its batch.
        stop: strings that end a sample; they are cut off.
        logprobs: add the natural log-probability of each new token under the model itself, before temperature and
            top_k.
        never: ids of tokens that are not sampled, besides those that the model's `generation_config.json` excludes.
        **sampling: settings by name, in place of those in `settings`: max_new_tokens, temperature, top_k, seed, ...

    Returns:
        The samples of each prompt, in order.

    Raises:
        UserError: the model cannot be loaded, a setting is unknown or out of range, or a prompt and its new tokens
            exceed the model's context.
    """
    chosen = with_overrides(settings or SamplingSettings(), sampling)
    texts = [prompts] if isinstance(prompts, str) else prompts
    loaded = as_loaded(model)
    return list(sample_prompts(loaded, texts, chosen, batch_size=batch_size, stop=stop, logprobs=logprobs, never=never))


def sample_prompts(
    loaded: LoadedModel,
    prompts: Sequence[str],
    settings: SamplingSettings,
    *,
    batch_size: int = 1,
    stop: Sequence[str] = (),
    logprobs: bool = False,
    never: Sequence[int] = (),
    console: Console | None = None,
) -> Iterator[PromptSamples]:
    """Yield the samples of each prompt as its batch is done; for the arguments see `generate`.

    Args:
        console: shows the tokens as they come, of prompts that are alone in their batch; none: nothing is shown.

    Raises:
        UserError: a setting is out of range, or a prompt and its new tokens exceed the model's context.
    """
    arguments = generate_arguments(settings)
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: choose 1 or more")
    if not all(stop):
        raise UserError("stop: an empty string ends every sample at once; give some text")
    if stop:
        arguments |= {"stop_strings": list(stop), "tokenizer": loaded.tokenizer}
    if never:
        arguments["suppress_tokens"] = [*(loaded.model.generation_config.suppress_tokens or ()), *never]
    copies = 1
    if settings.do_sample and settings.num_beams == 1 and loaded.model.device.type == "cpu" and samples_as_torch():
        copies = settings.num_return_sequences
        arguments = {name: value for name, value in arguments.items() if name not in SAMPLED_HERE}
        arguments |= {"do_sample": False, "logits_processor": sampling_processors(settings)}
    for batch in _batches(loaded, prompts, settings, batch_size):
        is_shown = console is not None and settings.num_beams == 1 and len(batch.prompts) == 1
        view = LiveSamples(console, loaded.tokenizer) if is_shown and console is not None else nullcontext()
        set_seed(settings.seed)
        with torch.no_grad(), view as streamer:
            rows = loaded.model.generate(
                **batch.inputs(loaded, copies), **arguments, max_new_tokens=batch.new_tokens, streamer=streamer
            )
        new = rows[:, max(map(len, batch.ids)) :].tolist()
        for number, (prompt, ids) in enumerate(zip(batch.prompts, batch.ids, strict=True)):
            count = settings.num_return_sequences
            texts, scores = [], []
            for row in new[number * count : (number + 1) * count]:
                text, kept = _text_until_stop(loaded, ids, _until_end(loaded, row), stop)
                texts.append(text)
                if logprobs:
                    scores.append(token_scores(loaded, ids, kept))
            yield PromptSamples(prompt, settings.seed, tuple(texts), tuple(scores))


def read_prompts(file: Path) -> list[str]:
    """Return the prompts in a file, one a line, without blank lines.

    Raises:
        UserError: the file is missing, is not UTF-8, or holds no prompt.
    """
    try:
        prompts = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; name one with a prompt a line") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 at byte {error.start}; convert it, as from CP949 with `iconv -f CP949 -t UTF-8`"
        ) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if not prompts:
        raise UserError(f"{file}: holds no prompt; write one a line")
    return prompts


@dataclass(frozen=True)
class _Batch:
    """Prompts that are generated together."""

    prompts: tuple[str, ...]
    ids: tuple[list[int], ...]
    new_tokens: int

    def inputs(self, loaded: LoadedModel, copies: int) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`, both int64[prompts * copies, longest], padded on the left.

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
            "pad_token_id": _pad_token(loaded),
        }


def _pad_token(loaded: LoadedModel) -> int | None:
    """Return the token that fills a row after its end while its batch continues."""
    if loaded.tokenizer.pad_token_id is not None:
        return int(loaded.tokenizer.pad_token_id)
    return min(_end_tokens(loaded), default=None)


def _end_tokens(loaded: LoadedModel) -> set[int]:
    ends = loaded.model.generation_config.eos_token_id
    return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}


def _batches(loaded: LoadedModel, prompts: Sequence[str], settings: SamplingSettings, size: int) -> Iterator[_Batch]:
    """Yield prompts in order, `size` at a time; those with room for different numbers of new tokens go apart."""
    batch: list[tuple[str, list[int], int]] = []
    for prompt in prompts:
        ids = prompt_ids(loaded.tokenizer, prompt)
        most = num_new_tokens(settings, len(ids), loaded.context_length)
        if batch and (len(batch) == size or batch[0][2] != most):
            yield _batch(batch)
            batch = []
        batch.append((prompt, ids, most))
    if batch:
        yield _batch(batch)


def _batch(rows: Sequence[tuple[str, list[int], int]]) -> _Batch:
    return _Batch(tuple(prompt for prompt, _, _ in rows), tuple(ids for _, ids, _ in rows), rows[0][2])


def _until_end(loaded: LoadedModel, row: list[int]) -> list[int]:
    """Return new tokens up to the one that ends the text, without the padding behind it."""
    ends = _end_tokens(loaded)
    last = next((number for number, token in enumerate(row, 1) if token in ends), len(row))
    row = row[:last]
    while row and row[-1] == loaded.tokenizer.pad_token_id and row[-1] not in ends:
        row.pop()
    return row


def _text_until_stop(
    loaded: LoadedModel, prompt: list[int], new: list[int], stop: Sequence[str]
) -> tuple[str, list[int]]:
    """Return the text of a sample up to its first stop string, and the new tokens that it is made of."""
    text = _decode(loaded, prompt + new)
    start = len(_decode(loaded, prompt))
    cuts = [at for each in stop if (at := text.find(each, start)) >= 0]
    if cuts:
        text = text[: min(cuts)]
        kept = next((n for n in range(len(new) + 1) if len(_decode(loaded, prompt + new[:n])) >= len(text)), len(new))
        new = new[:kept]
    return text, new


def _decode(loaded: LoadedModel, ids: list[int]) -> str:
    text: str = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def token_scores(loaded: LoadedModel, prompt: list[int], new: list[int]) -> tuple[TokenScore, ...]:
    """Return the log-probability of each of the tokens `new` after `prompt`, which must hold at least one token."""
    if not new:
        return ()
    ids = torch.tensor([prompt + new], device=loaded.model.device)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
    names = loaded.tokenizer.convert_ids_to_tokens(new)
    return tuple(TokenScore(*each) for each in zip(names, new, logprobs, strict=True))
