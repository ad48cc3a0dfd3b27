"""Model families, by the names that settings give them."""

from malmoi.registry import Registry
from malmoi.train.models import gpt2, gpt2_folder, llama, qwen3
from malmoi.train.models.classifier import GPT2WithClassifier, classifier_spec
from malmoi.train.models.spec import ClassifierSpec, HfSize, ModelSpec, SpecialTokenIds

MODELS: Registry[ModelSpec] = Registry(
    {
        "gpt2": ModelSpec(
            config=gpt2.gpt2_config,
            build=gpt2.TrainingGPT2,
            blocks=gpt2.gpt2_blocks,
            param_groups=gpt2.gpt2_param_groups,
            num_params=gpt2.gpt2_num_params,
            num_matrix_params=gpt2.gpt2_num_matrix_params,
            flops_per_token=gpt2.gpt2_flops_per_token,
            activation_bytes=gpt2.gpt2_activation_bytes,
            check_hf=gpt2_folder.check_gpt2_folder,
            shape_of_hf=gpt2_folder.gpt2_shape,
            hf_size=gpt2_folder.gpt2_size,
            from_hf=gpt2.gpt2_from_hf,
            to_hf=gpt2.gpt2_to_hf,
            classifier=classifier_spec(GPT2WithClassifier, gpt2.EMBEDDING),
        ),
        "llama": llama.SPEC,
        "qwen3": qwen3.SPEC,
    }
)

__all__ = ["MODELS", "ClassifierSpec", "HfSize", "ModelSpec", "SpecialTokenIds"]
