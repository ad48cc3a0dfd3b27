"""An old name of a setting is an error that says the new one, wherever settings are given."""

from pathlib import Path

import pytest

from malmoi.configs.commands import (
    GenerateOptions,
    InspectOptions,
    JudgeMakeOptions,
    JudgeResultsOptions,
    PrepareOptions,
    SlurmOptions,
    TokenizerOptions,
)
from malmoi.configs.finetune import FinetuneSettings
from malmoi.configs.parser import load_config, parse_settings, setting_names
from malmoi.configs.renamed import RENAMED
from malmoi.configs.run import RunSettings
from malmoi.errors import UserError

FORMER = {
    "corpus": "largest_skipped_share normalise longest_document",
    "corpus.cleaning": "shortest longest exact_duplicates near_duplicates hangul_share repeated_lines emails "
    "resident_numbers",
    "data": "held_out engine length_warmup",
    "train": "global_batch micro_batch steps optimizer learning_rate schedule decay_share final_learning_rate "
    "warmup_steps weight_decay beta1 beta2 epsilon clip_norm log_every evaluate_every evaluate_tokens save_every "
    "keep_last keep_best asynchronous_save accept_changed_data trackers profile divergence",
    "train.divergence": "nonfinite_steps spike_deviations spike_window rollbacks",
    "parallel": "hang_seconds",
    "sampling": "prompt num_return_sequences max_new_tokens max_length min_new_tokens do_sample temperature top_k "
    "top_p min_p repetition_penalty no_repeat_ngram_size num_beams length_penalty seed every_look",
}
"""Every name that a setting of pre-training had and has no more."""


@pytest.mark.parametrize("group", FORMER)
def test_no_former_name_is_forgotten(group: str) -> None:
    for name in (f"{group}.{leaf}" for leaf in FORMER[group].split()):
        assert RENAMED[name] in setting_names(RunSettings)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_each_old_name_of_a_run_leads_to_one_that_exists(old: str, new: str) -> None:
    kind = next(kind for kind in (RunSettings, FinetuneSettings) if new in setting_names(kind))
    assert old not in setting_names(kind)
    with pytest.raises(UserError, match=f"^unknown setting '--{old}': it is now --{new}$"):
        parse_settings(kind, [f"--{old}", "1"], "malmoi train", "")


def test_a_file_with_an_old_name_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: x\ntrain:\n  seed: 1\n  learning_rate: 1e-3\n", encoding="utf-8")
    message = f"^{file}:4: unknown setting 'train.learning_rate': it is now optim.lr$"
    with pytest.raises(UserError, match=message):
        parse_settings(RunSettings, ["--config", str(file)], "malmoi train", "")
    with pytest.raises(UserError, match=message):
        load_config(file)
    file.write_text("sampling:\n  prompt: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"^{file}:1: unknown setting 'sampling': it is now generate$"):
        load_config(file)


@pytest.mark.parametrize("given", [{"train__steps": 3}, {"train": {"steps": 3}}])
def test_so_is_one_given_in_python(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"^unknown setting 'train\.steps': it is now train\.max_steps$"):
        load_config("demo", **given)


def test_a_group_given_as_one_value_names_it_too() -> None:
    with pytest.raises(UserError, match=r"^unknown setting 'data\.held_out': it is now data\.val_fraction"):
        parse_settings(RunSettings, ["--data", "{held_out: 0.1}"], "malmoi train", "")


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (TokenizerOptions, "largest_skipped_share", "max_error_rate"),
        (TokenizerOptions, "cleaning.shortest", "cleaning.min_chars"),
        (PrepareOptions, "held_out", "val_fraction"),
        (PrepareOptions, "engine", "executor"),
        (RunSettings, "learning_rate", "optim.lr"),
        (InspectOptions, "held_out", "split"),
        (GenerateOptions, "batch", "batch_size"),
        (JudgeMakeOptions, "control", "control_texts"),
        (JudgeMakeOptions, "length", "target_chars"),
        (JudgeMakeOptions, "shortest", "min_chars"),
        (JudgeMakeOptions, "tries", "candidates"),
        (JudgeResultsOptions, "least_control", "min_control_accuracy"),
        (SlurmOptions, "warning_seconds", "signal_lead_seconds"),
        (SlurmOptions, "until_done", "chain"),
        (SlurmOptions, "at_once", "max_concurrent"),
        (SlurmOptions, "shared_disk", "shared_filesystem"),
    ],
)
def test_a_command_knows_its_old_options(kind: type, old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"^unknown setting '--{old}': it is now --{new}$"):
        parse_settings(kind, [f"--{old}=1"], "malmoi", "")


def test_a_name_that_never_was_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"^unknown setting '--train\.max_step'; did you mean '--train\.max_steps'\?$"):
        parse_settings(RunSettings, ["--train.max_step", "1"], "malmoi train", "")
    with pytest.raises(UserError, match=r"^unknown setting 'optim\.Lr'; did you mean 'optim\.lr'\?$"):
        load_config("demo", optim={"Lr": 1})


def test_a_setting_without_its_group_gets_its_full_name() -> None:
    with pytest.raises(UserError, match=r"^unknown setting '--lr'; did you mean '--optim\.lr'\?$"):
        parse_settings(RunSettings, ["--lr", "1"], "malmoi train", "")
