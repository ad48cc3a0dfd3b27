"""Text from a model: `transformers`' `generate`, seeded so that anyone gets the same text without Malmoi."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from configs.errors import BadInput
from configs.schema import SamplingSettings

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class PromptSamples:
    """The samples of one prompt, each with the prompt before it."""

    prompt: str
    seed: int
    samples: tuple[str, ...]


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and safetensors' own alike
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{folder}: cannot be loaded ({first_line}); export the model again") from error
    return LoadedModel(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


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
        prompts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file; name one with a prompt a line") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 at byte {error.start}; convert it with `iconv -t UTF-8`") from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    if not prompts:
        raise BadInput(f"{file}: holds no prompt; write one a line")
    return prompts


def generate(
    loaded: LoadedModel, prompts: Sequence[str], settings: SamplingSettings, console: Console | None = None
) -> Iterator[PromptSamples]:
    """Draw `settings.num_return_sequences` samples for each prompt.

    Args:
        console: where to show the tokens as they come; none: nowhere.

    Raises:
        BadInput: a setting is out of range, or prompt and new tokens are more than the model's context.
    """
    options = _generate_options(settings)
    for prompt in prompts:
        text = prompt.removeprefix(loaded.tokenizer.bos_token or "")
        inputs = loaded.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(loaded.model.device)
        length = inputs["input_ids"].shape[1]
        if length == 0:
            raise BadInput("the prompt is empty and this tokenizer puts no token before it; give some text")
        new_tokens = settings.max_new_tokens if settings.max_length is None else settings.max_length - length
        if not 1 <= new_tokens <= loaded.context - length:
            room = loaded.context - length
            remedy = (
                f"set --max_new_tokens to {room} or less" if room > 0 else f"shorten the prompt by {1 - room} tokens"
            )
            raise BadInput(
                f"a prompt of {length} tokens and {new_tokens} new ones do not fit the model's context of "
                f"{loaded.context}; {remedy}"
            )
        shown = console is not None and settings.num_beams == 1
        streamer = LiveSamples(console, loaded.tokenizer) if shown and console is not None else None
        set_seed(settings.seed)
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, **options, max_new_tokens=new_tokens, streamer=streamer)
        samples = tuple(loaded.tokenizer.decode(row, skip_special_tokens=True) for row in ids)
        yield PromptSamples(prompt, settings.seed, samples)


def _generate_options(settings: SamplingSettings) -> dict[str, Any]:
    checks = {
        "num_return_sequences": settings.num_return_sequences >= 1,
        "max_new_tokens": settings.max_new_tokens >= 1,
        "min_new_tokens": settings.min_new_tokens >= 0,
        "min_p": 0 <= settings.min_p < 1,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size >= 0,
        "temperature": settings.temperature > 0,
        "top_k": settings.top_k >= 0,
        "top_p": 0 < settings.top_p <= 1,
        "repetition_penalty": settings.repetition_penalty > 0,
        "num_beams": settings.num_beams >= 1,
        "seed": 0 <= settings.seed < 2**32,
    }
    for name, good in checks.items():
        if not good:
            raise BadInput(f"{name} {getattr(settings, name)} is out of range; see `malmoi generate --help`")
    if not settings.do_sample and settings.num_return_sequences > settings.num_beams:
        raise BadInput(
            f"num_return_sequences {settings.num_return_sequences} without sampling needs as many --num_beams; "
            "without either, all samples would be the same"
        )
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
    """One JSON object: `prompt`, `seed`, `samples`, or for several prompts `seed` and `results`."""
    records = [{"prompt": r.prompt, "seed": r.seed, "samples": list(r.samples)} for r in results]
    return json.dumps(records[0] if len(records) == 1 else {"results": records}, ensure_ascii=False)


def print_samples(console: Console, result: PromptSamples) -> None:
    """Show the samples of one prompt, numbered."""
    console.print(f"{result.prompt}  (seed {result.seed})", style="bold", markup=False, highlight=False)
    for number, text in enumerate(result.samples, 1):
        console.print(f"\n[{number}] ", style="dim", markup=False, end="")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
