from pathlib import Path

import pytest

from malmoi.errors import UserError
from malmoi.inference.model_folder import load_model
from tests.evaluation.fewshot.fewshot_models import bert


def test_a_folder_without_weights_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config.json, so no model folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((finished_run / "model" / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"no weights \(model.safetensors\)"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"no weights \(model.safetensors\)"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)


def test_a_model_that_does_not_generate_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a BertForMaskedLM, which is no causal language model"):
        load_model(bert(tmp_path / "bert"))
