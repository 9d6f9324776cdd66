"""Which modules other PEFT methods adapt on our backbones when their configuration names none.

With these, `LoraConfig(r=8)` works on a point transformer as on any model of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft.utils import constants

MODEL_TYPES = ("point_mae", "point_bert", "point_m2ae", "point_gpt", "recon")

# Where a method is not listed: the projections that LoRA adapts in the models of transformers.
DEFAULT_TARGETS = ["q_proj", "v_proj"]
TARGETS = {
    "IA3": ["k_proj", "v_proj", "fc2"],
    # The head's norms have the same names, and they belong to the head.
    "LNTUNING": r".*\.layers\.\d+\.(contrast_)?norm[12]",
    # BEFT shifts a bias, and query, key and value have none (but for PointGPT).
    "BEFT": ["out_proj", "fc2"],
}
IA3_FEEDFORWARD_TARGETS = ["fc2"]


# Scene encoders have one projection for queries, keys and values. Their pooling has a linear layer of another name,
# which no target here matches.
SCENE_MODEL_TYPES = ("ptv3",)
SCENE_TARGETS = ["qkv", "out_proj", "fc1", "fc2"]
SCENE_METHOD_TARGETS = {
    "IA3": ["fc2"],
    "LNTUNING": r".*\.layers\.\d+\.(position_norm|norm[12])",
    "BEFT": ["out_proj", "fc2"],
}


def register_default_targets(
    *model_types: str,
    targets: Mapping[str, Sequence[str] | str] = TARGETS,
    default: Sequence[str] = tuple(DEFAULT_TARGETS),
) -> None:
    """Tell PEFT the default `target_modules` of backbones whose blocks are ours.

    Defaults that are there already are left as they are.

    Args:
        *model_types: The `model_type` of each backbone.
        targets: Targets by method, as PEFT's mappings name it.
        default: Targets of all others.
    """
    for mapping_name, mapping in vars(constants).items():
        if not (
            mapping_name.startswith("TRANSFORMERS_MODELS_TO_") and mapping_name.endswith("_TARGET_MODULES_MAPPING")
        ):
            continue
        method = mapping_name.removeprefix("TRANSFORMERS_MODELS_TO_").removesuffix("_TARGET_MODULES_MAPPING")
        for model_type in model_types:
            mapping.setdefault(model_type, targets.get(method, list(default)))
    for model_type in model_types:
        constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.setdefault(
            model_type, IA3_FEEDFORWARD_TARGETS
        )


register_default_targets(*MODEL_TYPES)
register_default_targets(*SCENE_MODEL_TYPES, targets=SCENE_METHOD_TARGETS, default=SCENE_TARGETS)
