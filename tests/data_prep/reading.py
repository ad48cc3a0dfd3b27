"""Files of every format, written and read."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files

TRICKY = ['따옴표 " 하나', "쉼표, 줄\n바꿈", "탭\t과 \\ 빗금", " 앞뒤 공백 ", "보통 글"]
SKIP: dict[str, object] = {"on_error": "skip", "max_error_rate": 1.0}


def read(path: Path | str, **wanted: object) -> list[str]:
    """The texts that Malmoi reads from `path`, under the settings `wanted`."""
    corpus = CorpusSettings(input=(str(path),), normalize="none", **wanted)  # type: ignore[arg-type]  # any field
    return [document.text for document in read_documents(corpus_files(corpus), corpus)]


def write(folder: Path, suffix: str, texts: list[str]) -> Path:
    """A file of the format of `suffix` that holds `texts`."""
    file = folder / f"table{suffix}"
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    match suffix:
        case ".parquet":
            pq.write_table(table, file, row_group_size=2)
        case ".arrow":
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
        case ".json":
            records = [{"id": 1, "text": text} for text in texts]
            file.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
        case ".csv" | ".tsv":
            with file.open("w", newline="", encoding="utf-8") as stream:
                rows = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
                rows.writerows([["id", "text"], *enumerate(texts)])
        case ".jsonl" | ".ndjson":
            lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
            file.write_text("".join(lines), encoding="utf-8")
        case ".txt":
            file.write_bytes("".join(f"{text}\n" for text in texts).encode())
        case _:
            raise ValueError(f"nobody has said how to write {suffix}")
    return file
