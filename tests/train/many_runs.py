"""Several complete runs one after another on the same ranks: `torchrun ... many_runs.py LISTS`.

LISTS is a JSON file of lists of `malmoi train`'s words, or of `finetune` and its words. Importing torch, transformers
and DeepSpeed takes far longer than one of these runs, so a matrix of backends shares its processes; also their process
group, which DeepSpeed does not let go of.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

import malmoi.train.optim.muon
from malmoi.launch.cli import main


def undo_globals(environment: dict[str, str]) -> None:
    """Leave nothing of a run behind but its files and the process group."""
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.clear()
    os.environ.update(environment)


def run_all(lists: Path) -> int:
    """Run all command lines, and return the exit code of the first that fails."""
    before = dict(os.environ)
    torch.distributed.destroy_process_group = lambda *groups: None
    # On every machine in fp32: in bf16 a last bit that differs between ranks and one process moves the eighth.
    malmoi.train.optim.muon.has_fast_bf16 = lambda device: False
    for words in json.loads(lists.read_text(encoding="utf-8")):
        code = main(words if words[0] == "finetune" else ["train", *words])
        undo_globals(before)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
