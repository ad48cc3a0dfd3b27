"""Text from a model: `transformers`' `generate`, seeded so that anyone gets the same text without Malmoi."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from configs.errors import BadInput
from configs.schema import SamplingSettings
from inference.activation import activate_in_one_pass
from inference.drawing import drawing, draws_as_torch

CONFIG_FILE = "config.json"
DRAWING_OPTIONS = ("num_return_sequences", "temperature", "top_k", "top_p", "min_p")
"""What `inference.drawing` does in `generate`'s place."""
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class TokenScore:
    """A token and how likely the model found it."""

    token: str
    id: int
    logprob: float
    """Natural logarithm of its probability, before temperature, top_k and their like."""


@dataclass(frozen=True)
class Batching:
    """What belongs to drawing many samples rather than to their look."""

    prompts: int = 1
    """Prompts generated at once."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; they are cut off."""
    logprobs: bool = False
    """Whether to score each new token."""


@dataclass(frozen=True)
class PromptSamples:
    """The samples of one prompt, each with the prompt before it."""

    prompt: str
    seed: int
    samples: tuple[str, ...]
    tokens: tuple[tuple[TokenScore, ...], ...] = ()
    """The new tokens of each sample, where they were asked for."""


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """Most tokens that the model sees at once."""
        return int(self.model.config.max_position_embeddings)


def load_model(folder: Path) -> LoadedModel:
    """Load a model folder, on the GPU where there is one. Weights come from safetensors only.

    Raises:
        BadInput: the folder is no model folder, or lacks weights or tokenizer.
    """
    quiet_transformers()
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such model folder; train one with `malmoi train`, it ends in RUN/model")
    if not (folder / CONFIG_FILE).is_file():
        raise BadInput(f"{folder}: no {CONFIG_FILE}, so no model folder; give the folder that `malmoi train` exported")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise BadInput(f"{folder}: no weights ({WEIGHT_FILES[0]}); export the model again")
    _check_architecture(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and safetensors' own alike
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{folder}: cannot be loaded ({first_line}); export the model again") from error
    activate_in_one_pass(model)
    return LoadedModel(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


def _check_architecture(folder: Path) -> None:
    """Refuse models that do not predict the next token: `transformers` would load some with new, random parts."""
    try:
        named = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder / CONFIG_FILE}: no JSON object ({error}); export the model again") from error
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if named and not known & set(named):
        raise BadInput(
            f"{folder}: holds a {named[0]}, which does not write text; give a causal language model's folder"
        )


def quiet_transformers() -> None:
    """Keep `transformers`' progress bars and advice off the terminal; its errors are raised all the same."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


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
    options = _generate_options(settings)
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
        streamer = LiveSamples(console, loaded.tokenizer) if shown and console is not None else None
        set_seed(settings.seed)
        with torch.no_grad():
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
        text = prompt.removeprefix(loaded.tokenizer.bos_token or "")
        ids = list(loaded.tokenizer(text)["input_ids"])
        new_tokens = _new_tokens(loaded, len(ids), settings)
        if batch and (len(batch) == size or batch[0][2] != new_tokens):
            yield _batch(batch)
            batch = []
        batch.append((prompt, ids, new_tokens))
    if batch:
        yield _batch(batch)


def _batch(rows: Sequence[tuple[str, list[int], int]]) -> _Batch:
    return _Batch(tuple(prompt for prompt, _, _ in rows), tuple(ids for _, ids, _ in rows), rows[0][2])


def _new_tokens(loaded: LoadedModel, length: int, settings: SamplingSettings) -> int:
    """How many tokens a prompt of `length` tokens may grow by."""
    if length == 0:
        raise BadInput("the prompt is empty and this tokenizer puts no token before it; give some text")
    new_tokens = settings.max_new_tokens if settings.max_length is None else settings.max_length - length
    if not 1 <= new_tokens <= loaded.context - length:
        room = loaded.context - length
        remedy = f"set --max_new_tokens to {room} or less" if room > 0 else f"shorten the prompt by {1 - room} tokens"
        raise BadInput(
            f"a prompt of {length} tokens and {new_tokens} new ones do not fit the model's context of "
            f"{loaded.context}; {remedy}"
        )
    return new_tokens


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


def check_sampling(settings: SamplingSettings, group: str = "") -> None:
    """See that a model can be asked for such samples.

    Args:
        group: before the names of settings, where they are those of a run.

    Raises:
        BadInput: a setting is out of range, or does not go with another.
    """
    at_least_1, at_least_0 = "choose 1 or more", "choose 0 or more"
    checks = {
        "num_return_sequences": (settings.num_return_sequences >= 1, at_least_1),
        "max_new_tokens": (settings.max_new_tokens >= 1, at_least_1),
        "min_new_tokens": (settings.min_new_tokens >= 0, at_least_0),
        "min_p": (0 <= settings.min_p < 1, "choose 0 or more, and less than 1"),
        "no_repeat_ngram_size": (settings.no_repeat_ngram_size >= 0, at_least_0),
        "temperature": (
            0 < settings.temperature < math.inf,
            f"choose a number above 0; {group}do_sample false always takes the likeliest token",
        ),
        "top_k": (settings.top_k >= 0, at_least_0),
        "top_p": (0 < settings.top_p <= 1, "choose a share above 0, up to 1"),
        "repetition_penalty": (0 < settings.repetition_penalty < math.inf, "choose a number above 0"),
        "num_beams": (settings.num_beams >= 1, at_least_1),
        "seed": (0 <= settings.seed < 2**32, "choose a number from 0 to 2^32 - 1"),
    }
    for name, (good, remedy) in checks.items():
        if not good:
            raise BadInput(f"{group}{name} {getattr(settings, name)}: {remedy}")
    many, beams = settings.num_return_sequences, settings.num_beams
    if many > beams and (beams > 1 or not settings.do_sample):
        raise BadInput(
            f"{group}num_return_sequences {many} is more than {group}num_beams {beams}: a beam gives one sample, and "
            "without drawing all others would be the same; choose as many beams"
        )


def _generate_options(settings: SamplingSettings) -> dict[str, Any]:
    check_sampling(settings)
    options: dict[str, Any] = {
        "num_return_sequences": settings.num_return_sequences,
        "min_new_tokens": settings.min_new_tokens or None,
        "do_sample": settings.do_sample,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
        "num_beams": settings.num_beams,
    }
    if settings.do_sample:
        options |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        options |= {"min_p": settings.min_p} if settings.min_p else {}
    if settings.num_beams > 1:
        options["length_penalty"] = settings.length_penalty
    return options


class LiveSamples(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Shows all samples of a prompt as they grow."""

    def __init__(self, console: Console, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[list[int]] = []
        self._prompt: list[int] | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

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
        self._live.update("\n\n".join(f"{number}  {text}" for number, text in enumerate(texts, 1)), refresh=True)

    def end(self) -> None:
        """Take the live view away; the finished samples are printed in its place."""
        self._live.stop()


def samples_as_json(results: Sequence[PromptSamples]) -> str:
    """One JSON object: `prompt`, `seed`, `samples`, `tokens` where asked for; of several prompts `results`, a list."""
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
