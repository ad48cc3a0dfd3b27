"""Small training models with random weights."""

import torch

from malmoi.configs.model import ModelSettings
from malmoi.configs.train import Precision, TrainSettings
from malmoi.train.models import MODELS, SpecialTokenIds
from malmoi.train.models.compute import configure_compute
from malmoi.train.models.gpt2 import TrainingGPT2
from malmoi.train.models.spec import padded_vocabulary

SPECIAL = SpecialTokenIds(bos=0, pad=1, eos=2, unk=3)


def new_gpt2(shape: ModelSettings, vocab_size: int, seed: int, special: SpecialTokenIds = SPECIAL) -> TrainingGPT2:
    """Return a GPT-2 with random weights, the same for the same seed, its vocabulary padded."""
    torch.manual_seed(seed)
    spec = MODELS["gpt2"]
    model = spec.build(spec.config(shape, padded_vocabulary(vocab_size), special))
    assert isinstance(model, TrainingGPT2)
    return model


def configured(
    model: TrainingGPT2, train: TrainSettings, precision: Precision = "fp32", document_mask: bool = False
) -> TrainingGPT2:
    """Return `model`, set to compute as `train` says."""
    configure_compute(model, MODELS["gpt2"].blocks(model), train, precision, document_mask)
    return model
