import json
from pathlib import Path

from configs.schema import TextSettings
from inference.data_option import holds_shards, text_documents


def test_a_shard_folder_and_the_folder_around_it_are_told_from_text(finished_shards: Path, tmp_path: Path) -> None:
    assert holds_shards(finished_shards)
    assert holds_shards(finished_shards.parent)
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"body": "\u110b\u1165\u110c\u1166"}) + "\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "manifest.json").write_text("{}")
    for path in (text, tmp_path, tmp_path / "none"):
        assert not holds_shards(path)
    [document] = text_documents(str(tmp_path), TextSettings(text_field="body"))
    assert document.text == "어제"
