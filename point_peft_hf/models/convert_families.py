"""Published checkpoints that are not plain backbones: how they are recognised, and what can be done with them.

Most of them hold the blocks of Point-MAE and something more. Without it the blocks would load, and compute something
else than the model that was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Checkpoints of another model, or of a method on a model that is known.

    Attributes:
        name: The model or method, with its paper.
        pattern: Research names that only its files have.
        advice: What can be done instead.
        method: Name of the method, if its files can be converted to a backbone and an adapter.
    """

    name: str
    pattern: re.Pattern
    advice: str
    method: str | None = None


def _model(name: str, pattern: str, reason: str) -> Family:
    return Family(name, re.compile(pattern), f"{reason} Convert a checkpoint of a model that this package has.")


def _method(name: str, pattern: str, method: str | None = None) -> Family:
    advice = (
        f"What {name.split(' (')[0]} adds takes part in what the blocks compute, so the backbone alone is not the "
        "model that was trained. "
    )
    if method is None:
        advice += "Convert the pre-trained checkpoint that it was fine-tuned from."
    else:
        advice += f"Convert it with `--method {method}` (`method={method!r}`) to a backbone and an adapter."
    return Family(f"a model fine-tuned with {name}", re.compile(pattern), advice, method)


# Some methods share names with others: the first that matches is meant.
FAMILIES = (
    _model(
        "Point-FEMAE (arXiv 2312.10726)",
        r"^blocks\.blocks\.\d+\.cls(_norm)?\.",
        "Between the blocks of Point-MAE it has convolutions over neighbouring tokens, and it has no class token.",
    ),
    _method("DAPT (arXiv 2403.01439)", r"(^|\.)tfts_(gamma|beta)_\d$|\.Adapter_MLP\.", "dapt"),
    _method("IDPT (arXiv 2304.07221)", r"^blocks\.(cls|dgcnn_cls\d*)\.|^prompt_(cls_)?pos$", "idpt"),
    _method("PointLoRA (arXiv 2504.16023)", r"^lora_mask_predictor\.|^blocks\.prompt_(qkv|proj)_mlp\.", "pointlora"),
    _method("PPT (Positional Prompt Tuning, arXiv 2408.11567)", r"^blocks\.prompt_(pos_|all_)?mlp\.", "ppt"),
    _method("PointGST (arXiv 2410.08114)", r"\.gft_adapter\.", "pointgst"),
    _method("GAPrompt (arXiv 2505.04119)", r"^(point_prompt|shift_net|shape_feature_mlp)\.|^prompt_cor$", "gaprompt"),
    _method("STAG (arXiv 2502.14142)", r"^blocks\.addparam_", "stag"),
    _method("MoST (arXiv 2503.18368)", r"(^|\.)point_monarch\."),
    Family(
        "a model fine-tuned with Point-PEFT (arXiv 2310.03059)",
        re.compile(r"\.adapter1?\.ln[12]\.|\.ad_gate$|\.cp_adapters?\.|\.prompt_embeddings$"),
        "Its prompts are made of a memory bank, which is not in the file, and of the features of the encoder before "
        "its biases were tuned; and its blocks with prompts look up the neighbours of tokens in the order of another "
        "set of points, across the clouds of a batch. So the file alone does not give the model that was trained. "
        "Convert the pre-trained checkpoint that it was fine-tuned from, and train a PointPeftConfig on it.",
    ),
    Family(
        "a model with LoRA layers",
        re.compile(r"(^|\.)lora_\w+|\.base_layer\."),
        "Merge them into the weights first (in PEFT: `merge_and_unload()`), and save the model again.",
    ),
)


def recognize_family(names: Iterable[str]) -> tuple[Family, str] | None:
    """Recognise a checkpoint that is not that of a plain backbone.

    Returns:
        The family, and the name that gave it away; `None` if the file belongs to none of them.
    """
    names = list(names)
    for family in FAMILIES:
        for name in names:
            if family.pattern.search(name):
                return family, name
    return None
