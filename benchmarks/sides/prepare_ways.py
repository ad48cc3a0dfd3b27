"""From JSON lines to tokens on disk, by Malmoi and by what the field uses.

`prepare_ways.py WAY FILE TOKENIZER OUT CORES` is a process of benchmarks/prepare.py, which imports what its way needs
and nothing else.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BLOCK_SIZE = 1024


def texts_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def malmoi_way(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """`malmoi.prepare`."""
    import malmoi

    settings = {"run": out, "corpus": {"input": [str(file)]}, "tokenizer": {"path": tokenizer}}
    malmoi.prepare(malmoi.load_config(None, settings, data={"workers": cores}))


def load(tokenizer: Path) -> Any:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def encode_batch_fast(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """`tokenizers` on all cores, numpy's tofile."""
    import numpy as np

    encoder, batch = load(tokenizer), list[str]()
    bos, eos = encoder.token_to_id("<s>"), encoder.token_to_id("</s>")
    with (out / "tokens.bin").open("wb") as stream:

        def write() -> None:
            for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False):
                np.array([bos, *encoding.ids, eos], dtype=np.uint16).tofile(stream)
            batch.clear()

        for text in texts_of(file):
            batch.append(text)
            if len(batch) == 1000:
                write()
        write()


def run_clm(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """The path of transformers' run_clm.py: `datasets`, map to ids, map to blocks."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(str(tokenizer))
    raw = load_dataset("json", data_files=str(file), split="train", cache_dir=str(out))

    def tokenize(examples: Any) -> Any:
        return encoder(examples["text"])

    def group(examples: Any) -> Any:
        joined = {key: sum(map(list, examples[key]), []) for key in examples}  # noqa: RUF017 - as run_clm does it
        total = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        blocks = {key: [ids[i : i + BLOCK_SIZE] for i in range(0, total, BLOCK_SIZE)] for key, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    ids = raw.map(tokenize, batched=True, num_proc=cores, remove_columns=raw.column_names)
    ids.map(group, batched=True, num_proc=cores)


def datatrove(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """datatrove's Megatron writer, a task a core."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    parts = out / "parts"
    parts.mkdir()
    streams = [(parts / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(cores)]
    for number, line in enumerate(file.open(encoding="utf-8")):
        streams[number % cores].write(line)
    for stream in streams:
        stream.close()
    writer = MegatronDocumentTokenizer(
        str(out / "tokens"), tokenizer_name_or_path=str(tokenizer / "tokenizer.json"), eos_token="</s>"
    )
    LocalPipelineExecutor(
        [JsonlReader(str(parts)), writer], tasks=cores, workers=cores, logging_dir=str(out / "log")
    ).run()


def tutorial(file: Path, tokenizer: Path, out: Path, cores: int) -> None:
    """The tutorial's path: all the text in one string, encoded at once, pickled."""
    import pickle

    ids = load(tokenizer).encode("\n".join(texts_of(file)), add_special_tokens=False).ids
    blocks = [ids[i : i + BLOCK_SIZE] for i in range(0, len(ids) - BLOCK_SIZE + 1, BLOCK_SIZE)]
    with (out / "blocks.pickle").open("wb") as stream:
        pickle.dump(blocks, stream)


WAYS: dict[str, tuple[Callable[[Path, Path, Path, int], None], str]] = {
    "malmoi": (malmoi_way, "numpy"),
    "encode_batch_fast": (encode_batch_fast, "tokenizers"),
    "run_clm": (run_clm, "datasets"),
    "datatrove": (datatrove, "datatrove"),
    "tutorial": (tutorial, "tokenizers"),
}
"""Each with the package that it needs."""

if __name__ == "__main__":
    _, name, source, folder_of_tokenizer, target, count = sys.argv
    WAYS[name][0](Path(source), Path(folder_of_tokenizer), Path(target), int(count))
