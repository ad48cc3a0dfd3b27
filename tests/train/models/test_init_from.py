"""`--init_from`: training begins from another model's weights, or is refused with the reason."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from malmoi.configs.corpus import SourceSettings
from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.mixture import prepare_sources
from malmoi.data_prep.shards.manifest import read_manifest
from malmoi.errors import UserError
from malmoi.train.data.dataset import open_dataset
from malmoi.train.models import MODELS, SpecialTokenIds
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.pretrain import pretrain
from malmoi.train.pretrain_run import load_tokenizer, special_token_ids
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.launching import as_flags, metrics, run_malmoi, step_losses, with_settings
from tests.train.training_models import new_gpt2

CPU = torch.device("cpu")
VOCABULARY = 600
GPT2 = MODELS["gpt2"]


@pytest.fixture(scope="module")
def theirs(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 made by transformers alone, with GPT-2's kind of tokenizer: it takes the place of KoGPT2."""
    folder = tmp_path_factory.mktemp("theirs") / "gpt2"
    trained = ByteLevelBPETokenizer()
    trained.train([str(corpus_file)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    GPT2TokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, activation_function="relu"
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(theirs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "copied"))


@pytest.fixture
def beginning(tiny_settings: RunSettings, theirs: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """Settings of a run of three steps that begins from a model, with the model's own tokenizer."""

    def of(folder: Path = theirs, **changes: object) -> RunSettings:
        settings = with_settings(
            tiny_settings,
            run=str(tmp_path / "run"),
            init_from=str(folder),
            tokenizer__path=None,
            train__max_steps=3,
            checkpoint__every=0,
            eval__every=0,
        )
        return replace(settings, **changes)

    return of


def as_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def grown_tokenizer(folder: Path, tokens: list[str], out: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(out)
    return out


def test_training_begins_with_their_weights_tokenizer_and_a_fresh_schedule(
    beginning: Callable[..., RunSettings], theirs: Path, tmp_path: Path
) -> None:
    settings = beginning()
    assert pretrain(settings) == 0
    folder = tmp_path / "run"
    assert next(line["train/lr"] for line in metrics(folder) if "train/lr" in line) == pytest.approx(1e-2 / 4)
    sources = prepare_sources(settings.corpus, settings.data, theirs, Path(str(settings.data.cache)))
    samples = open_dataset(sources, 32, settings.train.seed).read(0, 8)
    loss_sum = batch_loss_sum(TrainingGPT2.from_pretrained(theirs), samples, VOCABULARY, CPU, "sdpa")
    assert step_losses(folder)[0] == pytest.approx(float(loss_sum.detach()) / (8 * 32), abs=1e-5)
    exported = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert exported.config.vocab_size == VOCABULARY
    assert exported.config.activation_function == "relu"
    ours, them = (AutoTokenizer.from_pretrained(where) for where in (folder / "model", theirs))
    assert ours("이순신 장군")["input_ids"] == them("이순신 장군")["input_ids"]


def test_our_own_model_is_trained_further(
    beginning: Callable[..., RunSettings], finished_run: Path, tmp_path: Path
) -> None:
    assert pretrain(beginning(finished_run / "model")) == 0
    first, before = step_losses(tmp_path / "run")[0], step_losses(finished_run)
    assert first < before[0] - 0.5, "it has learned already"


def test_a_replay_share_of_the_old_corpus_is_a_source_with_a_weight(
    beginning: Callable[..., RunSettings], tmp_path: Path, korean_texts: list[str]
) -> None:
    """docs/continue.md: one sample in four is old."""
    named = []
    for name, texts, weight in (("new", korean_texts[:100], 3.0), ("old", korean_texts[100:], 1.0)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        named.append(SourceSettings(name, (str(file),), weight))
    settings = beginning()
    settings = replace(settings, corpus=replace(settings.corpus, input=(), sources=tuple(named)))
    assert pretrain(settings) == 0
    sources = prepare_sources(
        settings.corpus, settings.data, Path(str(settings.init_from)), Path(str(settings.data.cache))
    )
    reader = open_dataset(sources, 32, settings.train.seed)
    chosen, _ = reader.mixture.locate(np.arange(3 * 8))
    assert int((chosen == 1).sum()) == 6
    loss_sum = batch_loss_sum(
        TrainingGPT2.from_pretrained(settings.init_from), reader.read(0, 8), VOCABULARY, CPU, "sdpa"
    )
    assert step_losses(tmp_path / "run")[0] == pytest.approx(float(loss_sum.detach()) / (8 * 32), abs=1e-5)


def test_new_tokens_and_positions_are_drawn_afresh_and_the_old_kept(tiny_settings: RunSettings, theirs: Path) -> None:
    old = GPT2LMHeadModel.from_pretrained(theirs)
    special, shape = SpecialTokenIds(0, None, 0, None), replace(tiny_settings.model, block_size=64)
    model = GPT2.from_hf(theirs, shape, 650, special, 1)
    weights = model.state_dict()
    for name, before in old.state_dict().items():
        assert torch.equal(weights[name][: len(before)], before), name
    assert weights["transformer.wte.weight"].shape == (704, 32)
    assert weights["transformer.wpe.weight"].shape == (64, 32)
    for new in (weights["transformer.wte.weight"][600:], weights["transformer.wpe.weight"][32:]):
        assert 0.015 < float(new.std()) < 0.025
    fresh = new_gpt2(shape, 650, 1, special).state_dict()["transformer.wpe.weight"][32:]
    assert torch.equal(weights["transformer.wpe.weight"][32:], fresh)
    again = GPT2.from_hf(theirs, shape, 650, special, 1).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.items())
    assert not torch.equal(
        GPT2.from_hf(theirs, shape, 650, special, 2).state_dict()["transformer.wte.weight"],
        weights["transformer.wte.weight"],
    )


def test_rows_that_pad_their_vocabulary_are_not_taken_for_tokens(tiny_settings: RunSettings, copied: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(copied)
    model.resize_token_embeddings(640, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[600:] = 7.0
    model.save_pretrained(copied)
    special = SpecialTokenIds(0, None, 0, None)
    weights = GPT2.from_hf(copied, tiny_settings.model, 600, special, 1).state_dict()["transformer.wte.weight"]
    assert weights.shape[0] == 640
    assert float(weights[600:].abs().max()) < 1


def test_a_grown_vocabulary_and_a_longer_context_need_the_word(
    beginning: Callable[..., RunSettings], theirs: Path, tmp_path: Path
) -> None:
    more = grown_tokenizer(theirs, ["신조어", "밈"], tmp_path / "more")
    settings = beginning()
    grown = replace(settings, tokenizer=replace(settings.tokenizer, path=str(more)))
    with pytest.raises(UserError, match=r"has rows for 600 tokens and .*more has 602; --init_resize true adds rows"):
        pretrain(grown)
    longer = replace(settings, model=replace(settings.model, block_size=48))
    with pytest.raises(UserError, match=r"reads 32 tokens and model.block_size is 48; --init_resize true draws"):
        pretrain(longer)
    with pytest.raises(UserError, match=r"--init_resize true cuts the positions"):
        pretrain(replace(settings, model=replace(settings.model, block_size=16)))
    both = replace(grown, model=longer.model, init_resize=True, run=str(tmp_path / "resized"))
    assert pretrain(both) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "resized" / "model").config
    assert (config.vocab_size, config.n_positions) == (602, 48)


def test_another_tokenizer_of_the_same_size_is_refused(
    beginning: Callable[..., RunSettings], copied: Path, tmp_path: Path
) -> None:
    file = copied / "tokenizer.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    vocab = record["model"]["vocab"]
    one, other = [token for token, number in vocab.items() if number in (300, 301)]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    file.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    settings = beginning()
    swapped = replace(settings, tokenizer=replace(settings.tokenizer, path=str(copied)), init_resize=True)
    with pytest.raises(UserError, match=r"2 of 600 have another id or none"):
        pretrain(swapped)


def test_other_shapes_and_kinds_are_refused_with_the_reason(
    beginning: Callable[..., RunSettings], copied: Path, tmp_path: Path
) -> None:
    settings = beginning(copied)
    wider = replace(settings, model=replace(settings.model, n_embd=64, n_layer=3))
    with pytest.raises(UserError, match=r"has n_layer 2, n_embd 32, .*set --model.n_layer 2 --model.n_head 2 --model"):
        pretrain(wider)
    for change, message in (
        ({"n_inner": 100}, "n_inner 100 is not 4 x n_embd"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"model_type": "llama"}, "holds a model of type llama, and model.architecture is gpt2; choose a GPT-2"),
    ):
        as_json(copied / "config.json", **change)
        with pytest.raises(UserError, match=message):
            pretrain(settings)
        as_json(copied / "config.json", n_inner=None, tie_word_embeddings=True, model_type="gpt2")
    (copied / "config.json").write_text("[1, 2", encoding="utf-8")
    with pytest.raises(UserError, match=r"config.json: not a JSON object"):
        pretrain(settings)
    with pytest.raises(UserError, match="no such folder; --init_from takes a model folder"):
        pretrain(beginning(tmp_path / "nowhere"))


def test_a_pickle_is_never_loaded(beginning: Callable[..., RunSettings], copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights \(model.safetensors\)"):
        pretrain(beginning(copied))
    (copied / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UserError, match=r"its weights are a pickle, .*save_pretrained\(NEW_FOLDER\)"):
        pretrain(beginning(copied))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_all_there_are_refused(beginning: Callable[..., RunSettings], copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "h.1.mlp" not in name}
    save_file(kept, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights transformer.h.1.mlp.c_fc.bias and 3 more"):
        pretrain(beginning(copied))


def test_on_the_command_line_it_is_one_flag_and_one_line_of_refusal(
    beginning: Callable[..., RunSettings], theirs: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(settings_as_yaml(beginning()), encoding="utf-8")
    done = run_malmoi("train", *as_flags(config, init_from=theirs, model__n_layer=3))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("malmoi train: ") and "--model.n_layer 2" in done.stderr


def test_a_run_does_not_change_what_it_began_from(
    beginning: Callable[..., RunSettings], copied: Path, theirs: Path
) -> None:
    assert pretrain(beginning()) == 0
    with pytest.raises(UserError, match=r"init_from was .*gpt2 and is now .*copied"):
        pretrain(beginning(copied))


def test_a_tokenizer_whose_configuration_names_another_end_of_text_is_refused(
    beginning: Callable[..., RunSettings], copied: Path
) -> None:
    """As KoGPT2's, which comes without one, so that transformers takes GPT-2's for it."""
    record = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "</s>"))
    (copied / "tokenizer.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"end with 0, and the tokenizer's configuration names .*set bos_token and"):
        pretrain(beginning(copied))
    as_what_it_is = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "</s>", "eos_token": "</s>"}
    (copied / "tokenizer_config.json").write_text(json.dumps(as_what_it_is), encoding="utf-8")
    assert pretrain(beginning(copied)) == 0


def test_their_one_token_for_both_ends_sets_documents_apart(
    beginning: Callable[..., RunSettings], theirs: Path
) -> None:
    special = special_token_ids(theirs, load_tokenizer(theirs))
    assert special.bos == special.eos
    settings = beginning()
    assert pretrain(replace(settings, data=replace(settings.data, document_mask=True))) == 0
    (source,) = prepare_sources(settings.corpus, settings.data, theirs, Path(str(settings.data.cache)))
    assert read_manifest(source.folder).vocab_size == VOCABULARY
    batch = open_dataset((source,), 32, 0, "one").read(0, 50)
    assert batch.doc_starts is not None
    first_of_a_document = (batch.doc_starts == np.arange(32)) & (np.arange(32) > 0)
    assert first_of_a_document.any()
    assert (batch.inputs[first_of_a_document] == special.eos).all()
    assert ((batch.inputs == special.eos) & (np.arange(32) > 0) == first_of_a_document).all()
