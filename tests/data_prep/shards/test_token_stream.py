"""A split opens in time and memory that do not grow with its tokens."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from malmoi.checksums import FileRecord
from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.shards.indexed_dataset import write_index
from malmoi.data_prep.shards.manifest import FORMAT_VERSION, Manifest, Split, SplitCounts, write_manifest
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.errors import UserError
from tests.permissions import permissions_of_others

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


CUT = """
import os, sys
from pathlib import Path
import numpy as np
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.errors import UserError
from malmoi.train.data.document_mask import DocumentStarts
folder, name = Path(sys.argv[1]), sys.argv[2]
stream = open_split(folder, "train")
documents = DocumentStarts(stream, "two")
block = np.zeros(1000, dtype=np.int64)
def read():
    stream.read_into(len(stream) - len(block), block)
    documents.masked_targets(len(stream) - len(block), len(block) - 1)
read()
# Put in another's place, as by a build: what is open stays.
for file in sorted(folder.glob("train-*")):
    file.with_suffix(".new").write_bytes(file.read_bytes())
    file.with_suffix(".new").rename(file)
    read()
stream = open_split(folder, "train")
documents = DocumentStarts(stream, "two")
os.truncate(folder / name, 100)
try:
    read()
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.idx"])
def test_a_shard_cut_under_its_reader_is_an_error_and_no_end_by_a_signal(
    reviews: Path, tokenizer_folder: Path, tmp_path: Path, name: str
) -> None:
    corpus = CorpusSettings(input=(str(reviews),))
    folder = prepare_shards(corpus, DataSettings(workers=1), tokenizer_folder, tmp_path)
    done = subprocess.run([sys.executable, "-c", CUT, str(folder), name], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert f"{name}: cut to 100 bytes of " in done.stderr
    assert done.stderr.endswith("while it was read; prepare again\n") and done.stderr.count("\n") == 1


def test_a_folder_without_shards_or_without_permission_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such folder; name a shard folder, as `malmoi prepare` prints it"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(UserError, match="no shard folder here; name the folder that holds manifest"):
        open_split(tmp_path, "train")
    shards = tmp_path / "shards"
    (shards / "one").mkdir(parents=True)
    for place, mode in ((shards, 0o000), (shards / "one", 0o000), (shards, 0o111)):
        place.chmod(mode)
        with permissions_of_others(), pytest.raises(UserError, match=r"shards.*: cannot be read \(Permission denied\)"):
            open_split(shards, "train")
        place.chmod(0o755)
