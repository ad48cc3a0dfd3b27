"""Settings whose name has changed: the old name is an error that says the new one."""

from collections.abc import Collection
from dataclasses import fields

from malmoi.configs.outputs import SamplingSettings
from malmoi.errors import nearest_name_hint

RENAMED = {
    "corpus.largest_skipped_share": "corpus.max_error_rate",
    "corpus.normalise": "corpus.normalize",
    "corpus.longest_document": "corpus.max_document_bytes",
    "corpus.cleaning.shortest": "corpus.cleaning.min_chars",
    "corpus.cleaning.longest": "corpus.cleaning.max_chars",
    "corpus.cleaning.exact_duplicates": "corpus.cleaning.exact_dedup",
    "corpus.cleaning.near_duplicates": "corpus.cleaning.near_dedup_threshold",
    "corpus.cleaning.hangul_share": "corpus.cleaning.min_hangul_ratio",
    "corpus.cleaning.repeated_lines": "corpus.cleaning.dedup_lines",
    "corpus.cleaning.emails": "corpus.cleaning.remove_emails",
    "corpus.cleaning.resident_numbers": "corpus.cleaning.remove_resident_numbers",
    "data.held_out": "data.val_fraction",
    "data.engine": "data.executor",
    "data.length_warmup": "data.seq_len_warmup",
    "train.global_batch": "train.global_batch_size",
    "train.micro_batch": "train.micro_batch_size",
    "train.steps": "train.max_steps",
    "train.optimizer": "optim.name",
    "train.learning_rate": "optim.lr",
    "train.beta1": "optim.betas",
    "train.beta2": "optim.betas",
    "train.epsilon": "optim.eps",
    "train.weight_decay": "optim.weight_decay",
    "train.clip_norm": "optim.max_grad_norm",
    "train.schedule": "schedule.name",
    "train.warmup_steps": "schedule.warmup_steps",
    "train.warmup_share": "schedule.warmup_ratio",
    "train.decay_share": "schedule.decay_ratio",
    "train.final_learning_rate": "schedule.min_lr_ratio",
    "train.save_every": "checkpoint.every",
    "train.keep_last": "checkpoint.keep_last",
    "train.keep_best": "checkpoint.keep_best",
    "train.asynchronous_save": "checkpoint.async_save",
    "train.accept_changed_data": "checkpoint.allow_data_change",
    "train.evaluate_every": "eval.every",
    "train.evaluate_tokens": "eval.tokens",
    "train.log_every": "log.every",
    "train.trackers": "log.trackers",
    "train.profile": "log.profile_steps",
    "train.divergence": "rollback",
    "train.divergence.nonfinite_steps": "rollback.max_nonfinite_steps",
    "train.divergence.spike_deviations": "rollback.spike_zscore",
    "train.divergence.spike_window": "rollback.spike_window",
    "train.divergence.rollbacks": "rollback.max_rollbacks",
    "parallel.hang_seconds": "parallel.watchdog_timeout",
    "sampling": "generate",
    "sampling.every_look": "eval.sample_tokens",
    "task.language_model_weight": "task.lm_loss_weight",
    "fresh_weights": "random_init",
    "patience": "eval.patience",
    **{f"sampling.{option.name}": f"generate.{option.name}" for option in fields(SamplingSettings)},
}
"""Setting of a run, old name -> new one."""

RENAMED_OPTIONS = {
    "held_out": "split",
    "batch": "batch_size",
    "control": "control_texts",
    "length": "target_chars",
    "shortest": "min_chars",
    "tries": "candidates",
    "least_control": "min_control_accuracy",
    "warning_seconds": "signal_lead_seconds",
    "until_done": "chain",
    "at_once": "max_concurrent",
    "shared_disk": "shared_filesystem",
}
"""Option of a command that is no setting of a run, old name -> new one."""


def new_name(name: str, known: Collection[str]) -> str | None:
    """Return what the setting of the old name `name` is called among the `known` ones; None: it is no old name.

    A command without groups knows `corpus.max_error_rate` as `max_error_rate`, and its old name is short in the same
    way. A setting of a run may lack its group too.
    """
    for old, new in (*RENAMED.items(), *RENAMED_OPTIONS.items()):
        short = ((old.removeprefix(group), new.removeprefix(group)) for group in ("corpus.", "data."))
        for old_form, new_form in ((old, new), *short, (old.rpartition(".")[2], new)):
            if name == old_form and new_form in known:
                return new_form
    return None


def unknown_setting(name: str, known: Collection[str], flag: str = "") -> str:
    """Return the error about a setting that does not exist: its new name, or the nearest one.

    Args:
        flag: what names are written with, such as `--`.
    """
    new = new_name(name, known)
    if new is not None:
        return f"unknown setting '{flag}{name}': it is now {flag}{new}"
    return f"unknown setting '{flag}{name}'{nearest_name_hint(flag + name, [flag + each for each in known])}"
