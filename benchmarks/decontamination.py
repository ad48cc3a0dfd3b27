"""How many documents of text files hold evaluation data, and how fast that is found.

    python benchmarks/decontamination.py FILE... [--evaluation package:evaluation/fewshot/tasks/data] [--run 30]

FILE are JSON lines with a field `text`, as `corpus.input` names them. Prints for each its documents, how many were
found, megabytes a second of one core, and the beginning of the first few that were found, to be judged by eye.
"""

import argparse
import time

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.filters.decontamination import evaluation_runs
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.readers.sources import corpus_files

BATCH = 2000
SHOWN, SHOWN_CHARACTERS = 3, 100


def main() -> None:
    """Print the figures of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--evaluation", nargs="+", default=["package:evaluation/fewshot/tasks/data"])
    parser.add_argument("--run", type=int, default=30)
    options = parser.parse_args()
    runs = evaluation_runs(tuple(options.evaluation), options.run)
    print(f"{len(runs.hashes):,} runs of {runs.texts:,} evaluation texts")
    runs.found_in(["."])  # its tables are made at the first call
    for name in options.files:
        settings = CorpusSettings(input=(name,))
        texts = [document.text for document in read_documents(corpus_files(settings), settings)]
        began = time.process_time()
        found = [
            bool(each) for start in range(0, len(texts), BATCH) for each in runs.found_in(texts[start : start + BATCH])
        ]
        seconds = time.process_time() - began
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        share = sum(found) / len(texts)
        print(f"{name}: {sum(found):,} of {len(texts):,} documents ({share:.3%}), {megabytes / seconds:.0f} MB/s")
        for text in [text for text, is_found in zip(texts, found, strict=True) if is_found][:SHOWN]:
            print(f"    {text[:SHOWN_CHARACTERS]!r}")


if __name__ == "__main__":
    main()
