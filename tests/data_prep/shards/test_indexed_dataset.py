"""The bytes are Megatron's, by a reader and writer made from the table of its format, and opening costs nothing."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malmoi.data_prep.shards.indexed_dataset import open_shard, token_dtype, write_index
from malmoi.data_prep.shards.token_stream import TokenStream
from malmoi.data_prep.shards.writer import NOTHING_WRITTEN, SplitWriter
from malmoi.errors import UserError

DOCUMENTS = st.lists(st.lists(st.integers(0, 65_499), max_size=6), max_size=20)


def table_index(documents: list[list[int]], code: int, width: int) -> bytes:
    """The index as the table of the format has it."""
    parts = [b"MMIDIDX\0\0", struct.pack("<Q", 1), struct.pack("<B", code)]
    parts += [struct.pack("<Q", len(documents)), struct.pack("<Q", len(documents) + 1)]
    parts += [struct.pack("<i", len(document)) for document in documents]
    offset = 0
    for document in documents:
        parts.append(struct.pack("<q", offset))
        offset += width * len(document)
    parts += [struct.pack("<q", number) for number in range(len(documents) + 1)]
    return b"".join(parts)


def table_read(index: bytes, content: bytes) -> list[list[int]]:
    """The documents, read by the table of the format."""
    assert index[:9] == b"MMIDIDX\0\0" and struct.unpack_from("<Q", index, 9) == (1,)
    code = index[17]
    sequences, bounds = struct.unpack_from("<QQ", index, 18)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    offsets = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    starts = struct.unpack_from(f"<{bounds}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * bounds and starts == tuple(range(sequences + 1))
    letter = {8: "H", 4: "i"}[code]
    return [list(struct.unpack_from(f"<{n}{letter}", content, at)) for n, at in zip(lengths, offsets, strict=True)]


def write(folder: Path, documents: list[list[int]], dtype: str, shard_tokens: int = 10**9) -> list[str]:
    writer = SplitWriter(folder, folder, "train", np.dtype(dtype), shard_tokens, NOTHING_WRITTEN)
    for document in documents:
        ids = np.array(document, dtype=dtype)
        writer.add(ids, np.array([len(document)], dtype=np.int32), 0, 0)
    writer.close()
    return [record.name.removesuffix(".bin") for record in writer.state().finished if record.name.endswith(".bin")]


@pytest.mark.parametrize(("dtype", "code", "width"), [("<u2", 8, 2), ("<i4", 4, 4)])
@given(documents=DOCUMENTS.filter(bool), shard_tokens=st.integers(1, 30))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_those_of_the_table(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    code: int,
    width: int,
    documents: list[list[int]],
    shard_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    stems = write(folder, documents, dtype, shard_tokens)
    found: list[list[int]] = []
    for stem in stems:
        index, content = (folder / f"{stem}.idx").read_bytes(), (folder / f"{stem}.bin").read_bytes()
        read = table_read(index, content)
        assert index == table_index(read, code, width)
        shard = open_shard(folder / stem)
        assert [shard.document(number).tolist() for number in range(len(read))] == read
        found += read
    assert found == documents
    stream = TokenStream([open_shard(folder / stem) for stem in stems])
    flat = [token for document in documents for token in document]
    out = np.zeros(len(flat), dtype=np.int64)
    stream.read_into(0, out)
    assert out.tolist() == flat
    half = np.zeros(len(flat) // 2, dtype=np.int64)
    stream.read_into(len(flat) // 3, half)
    assert half.tolist() == flat[len(flat) // 3 :][: len(half)]
    with pytest.raises(IndexError):
        stream.read_into(len(flat), np.zeros(1, dtype=np.int64))


def test_a_file_of_the_table_is_read(tmp_path: Path) -> None:
    documents = [[], [7], [1, 2, 3], [65_499]]
    (tmp_path / "a.idx").write_bytes(table_index(documents, 8, 2))
    (tmp_path / "a.bin").write_bytes(b"".join(struct.pack("<H", token) for document in documents for token in document))
    shard = open_shard(tmp_path / "a")
    assert [shard.document(number).tolist() for number in range(4)] == documents


def test_width_by_vocabulary() -> None:
    assert token_dtype(65_499) == np.dtype("<u2") and token_dtype(65_500) == np.dtype("<i4")


def test_an_index_longer_than_a_block_of_writing() -> None:
    lengths = np.arange(2_500_000, dtype=np.int32) % 5
    stream = io.BytesIO()
    write_index(stream, lengths, np.dtype("<u2"))
    index = np.frombuffer(stream.getvalue(), np.uint8)
    offsets = index[34 + 4 * len(lengths) :][: 8 * len(lengths)].view("<i8")
    assert np.array_equal(offsets[1:], 2 * np.cumsum(lengths[:-1], dtype=np.int64)) and offsets[0] == 0
    assert np.array_equal(index[34 + 12 * len(lengths) :].view("<i8"), np.arange(len(lengths) + 1))


@pytest.mark.parametrize("byte", [0, 9, 17])
def test_what_is_no_index_is_named(tmp_path: Path, byte: int) -> None:
    write(tmp_path, [[1, 2]], "<u2")
    content = bytearray((tmp_path / "train-00000.idx").read_bytes())
    content[byte] += 1
    (tmp_path / "train-00000.idx").write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.idx: no index of Megatron's format"):
        open_shard(tmp_path / "train-00000")


def test_a_cut_file_of_tokens_is_named_without_a_manifest(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2], [3]], "<u2")
    os.truncate(tmp_path / "train-00000.bin", 4)
    with pytest.raises(UserError, match=r"train-00000\.bin: 4 bytes, but its index says 6"):
        open_shard(tmp_path / "train-00000")
