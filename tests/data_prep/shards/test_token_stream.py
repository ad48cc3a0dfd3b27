"""A split opens in time and memory that do not grow with its tokens."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from malmoi.checksums import FileRecord
from malmoi.data_prep.shards.indexed_dataset import write_index
from malmoi.data_prep.shards.manifest import FORMAT_VERSION, Manifest, Split, SplitCounts, write_manifest

SPARSE = """
import sys
from pathlib import Path
import numpy as np
from malmoi.data_prep.shards.token_stream import open_split
before = int(dict(line.split(": ") for line in open("/proc/self/io"))["rchar"])
stream = open_split(Path(sys.argv[1]), "train")
block = np.zeros(1025, dtype=np.int64)
for start in (0, len(stream) // 2 - 3, len(stream) - len(block)):
    stream.read_into(start, block)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
read = dict(line.split(": ") for line in open("/proc/self/io"))
print(len(stream), int(read["rchar"]) - before, status["VmHWM"].split()[0])
"""


def test_a_trillion_tokens_open_without_being_read(tmp_path: Path) -> None:
    shards, documents, tokens = 1_000, 1_000, 10**6
    stems = tuple(f"train-{number:05d}" for number in range(shards))
    index = io.BytesIO()
    write_index(index, np.full(documents, tokens, dtype=np.int32), np.dtype("<u2"))
    files = []
    for stem in stems:
        (tmp_path / f"{stem}.idx").write_bytes(index.getvalue())
        with (tmp_path / f"{stem}.bin").open("wb") as stream:
            try:
                os.truncate(stream.fileno(), 2 * documents * tokens)
            except OSError as error:
                pytest.skip(f"no sparse file of 2 GB here ({error.strerror})")
        files.append(FileRecord(f"{stem}.bin", 2 * documents * tokens, ""))
        files.append(FileRecord(f"{stem}.idx", len(index.getvalue()), ""))
    counts = SplitCounts(shards * documents, shards * documents * tokens, 1, 1)
    train, none = Split(stems, counts), Split((), SplitCounts(0, 0, 0, 0))
    write_manifest(Manifest(FORMAT_VERSION, "x", "x", 50_000, {}, (), train, none, {}, {}, 0, tuple(files)), tmp_path)
    done = subprocess.run([sys.executable, "-c", SPARSE, str(tmp_path)], capture_output=True, text=True, check=True)
    length, read, kilobytes = map(int, done.stdout.split())
    assert length == 10**12
    assert read < 10_000_000
    assert kilobytes < 400_000
