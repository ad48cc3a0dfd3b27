"""docs/extending.md: its code, in one module beside the run, extends every registry that it names."""

import json
import re
from pathlib import Path

from tests.launching import ROOT, metrics, run_malmoi

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_pages_optimizer_schedule_model_reader_tracker_and_hook_train_a_model(
    tmp_path: Path, korean_texts: list[str]
) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    assert len(blocks) == 6
    (tmp_path / "my_plugin.py").write_text("\n\n".join(blocks), encoding="utf-8")
    page = "\n".join(f"# {number}\n{text}" for number, text in enumerate(korean_texts))
    (tmp_path / "text.md").write_text(page, encoding="utf-8")
    done = run_malmoi(
        *("train", "--run", "run", "--plugins", "[my_plugin]", "--corpus.input", "[text.md]"),
        *("--tokenizer.vocab_size", "2000", "--data.val_fraction", "0.1"),
        *("--model.architecture", "gpt2_scaled", "--model.n_layer", "1", "--model.n_head", "2"),
        *("--model.n_embd", "32", "--model.block_size", "32", "--optim.name", "lion", "--optim.lr", "1e-3"),
        *("--schedule.name", "square_root", "--train.global_batch_size", "4", "--train.micro_batch_size", "4"),
        *("--train.max_steps", "20", "--log.every", "5", "--log.trackers", "[my_plugin:PrintTracker]"),
        *("--eval.every", "0", "--generate.max_new_tokens", "4"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    logged = metrics(tmp_path / "run")
    assert [line["step"] for line in logged if "my/embedding_norm" in line] == [10, 20]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert [line["train/lr"] for line in logged if "train/lr" in line][-1] == 0.1 * 1e-3
    assert "run " in done.stdout and "20 " in done.stdout
    [manifest] = (tmp_path / "run" / "shards").glob("*/manifest.json")
    counts = [json.loads(manifest.read_text(encoding="utf-8"))[split]["counts"] for split in ("train", "val")]
    assert sum(count["documents"] for count in counts) == len(korean_texts)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["scale_attn_by_inverse_layer_idx"] is True
