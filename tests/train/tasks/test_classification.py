"""The loss of fine-tuning, and the scores of its head, against the plainest computation of them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from malmoi.configs.finetune import TaskKind, TaskSettings
from malmoi.configs.model import ModelSettings
from malmoi.train.data.labeled import ExampleBatch, Examples, example_tokenizer
from malmoi.train.models import MODELS
from malmoi.train.models.classifier import GPT2WithClassifier, with_classifier
from malmoi.train.tasks.classification import joint_loss_sum
from tests.train.labeled import FILES, read_examples, rows_of, written
from tests.train.training_models import SPECIAL

CPU = torch.device("cpu")
CONTEXT = 32


@pytest.fixture(scope="module", params=list(FILES))
def kind(request: pytest.FixtureRequest) -> TaskKind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def examples(kind: TaskKind, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    file = written(tmp_path_factory.mktemp("labeled") / "rows.jsonl", rows_of(kind, "", 12))
    return read_examples(file, TaskSettings(kind=kind, train=file), example_tokenizer(finished_run / "model", CONTEXT))


@pytest.fixture(scope="module")
def model(kind: TaskKind, examples: Examples, finished_run: Path) -> GPT2WithClassifier:
    """Without dropout, so that its parts can be computed one by one; a head large enough to matter."""
    tokenizer = example_tokenizer(finished_run / "model", CONTEXT)
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=CONTEXT)
    language_model = MODELS["gpt2"].from_hf(finished_run / "model", shape, tokenizer.size, SPECIAL, 42)
    made = with_classifier(GPT2WithClassifier, language_model, kind, examples.outputs, 42)
    with torch.no_grad():
        made.score.weight.mul_(20)
    return made


def all_of(examples: Examples) -> ExampleBatch:
    return examples.in_order(0, len(examples), 42)


def plain_loss(model: GPT2WithClassifier, batch: ExampleBatch, task: TaskSettings, vocab_size: int) -> torch.Tensor:
    """One sequence at a time, never padded: the label's loss and half the mean of the text's, summed over examples."""
    total = torch.zeros(())
    for number, answer in enumerate(batch.answers.tolist()):
        vectors, texts = [], []
        for row in range(number * batch.sequences, (number + 1) * batch.sequences):
            ids = torch.from_numpy(batch.ids[row, : batch.lengths[row]])[None]
            out = model.transformer(input_ids=ids).last_hidden_state
            vectors.append(out[0, -1])
            logits = (out @ model.transformer.wte.weight.T)[0, :-1, :vocab_size]
            texts.append(functional.cross_entropy(logits, ids[0, 1:]))
        weight = model.score.weight
        if task.kind == "similarity":
            loss = ((vectors[0] + vectors[1]) @ weight[0] - answer) ** 2
        elif task.kind == "multiple_choice":
            loss = -torch.log_softmax(torch.stack([vector @ weight[0] for vector in vectors]), 0)[answer]
        else:
            loss = -torch.log_softmax(weight @ vectors[0], 0)[answer]
        total = total + loss + task.lm_loss_weight * sum(texts) / len(texts)
    return total


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_the_joint_loss_and_its_gradient_are_the_plain_ones(
    kind: TaskKind, examples: Examples, model: GPT2WithClassifier, weight: float
) -> None:
    task, batch, vocab_size = TaskSettings(kind=kind, lm_loss_weight=weight), all_of(examples), 2002
    gradients = []
    losses = (joint_loss_sum(model, batch, task, vocab_size, CPU), plain_loss(model, batch, task, vocab_size))
    for loss in losses:
        model.zero_grad()
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def scores_of(model: GPT2WithClassifier, batch: ExampleBatch) -> torch.Tensor:
    model.eval()
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    scores, logits = model(input_ids=ids, lengths=lengths, sequences=batch.sequences, with_lm_logits=False)
    assert logits is None
    return scores


def test_padding_changes_no_score(examples: Examples, model: GPT2WithClassifier) -> None:
    batch = all_of(examples)
    assert len(set(batch.lengths.tolist())) > 1
    alone = [scores_of(model, examples.in_order(number, 1, 42)) for number in range(len(examples))]
    torch.testing.assert_close(scores_of(model, batch), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_similarity_does_not_depend_on_which_text_comes_first(finished_run: Path, tmp_path: Path) -> None:
    tokenizer = example_tokenizer(finished_run / "model", CONTEXT)
    rows = rows_of("similarity", "", 8)
    swapped = [{**row, "sentence1": row["sentence2"], "sentence2": row["sentence1"]} for row in rows]
    task = TaskSettings(kind="similarity")
    one, other = (
        read_examples(written(tmp_path / f"{number}.jsonl", part), task, tokenizer)
        for number, part in enumerate((rows, swapped))
    )
    shape = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=CONTEXT)
    base = MODELS["gpt2"].from_hf(finished_run / "model", shape, tokenizer.size, SPECIAL, 42)
    model = with_classifier(GPT2WithClassifier, base, "similarity", 0, 42)
    scores = scores_of(model, all_of(one))
    torch.testing.assert_close(scores, scores_of(model, all_of(other)), rtol=1e-5, atol=1e-6)
    assert float(scores.std()) > 0
