"""Try what each adapter type can do on each backbone, and write docs/capabilities.md.

    python docs/fill_capabilities.py           # from the root of the repository; a quarter of an hour of one core
    python docs/fill_capabilities.py --check   # fail if the page says something else

Everything is tried on tiny untrained models on the CPU. What does not work stands below the table, with the reason.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

import point_peft_hf as pp
from point_peft_hf.training.methods import PEFT_REFUSED, Method, method_config

PAGE = Path(__file__).with_name("capabilities.md")
BACKBONES = {
    "Point-MAE": (pp.PointMAEForClassification, pp.PointMAEConfig),
    "Point-BERT": (pp.PointBertForClassification, pp.PointBertConfig),
    "Point-M2AE": (pp.PointM2AEForClassification, pp.PointM2AEConfig),
    "PointGPT": (pp.PointGPTForClassification, pp.PointGPTConfig),
    "ReCon": (pp.ReConForClassification, pp.ReConConfig),
}
_BLOCKS = {"num_attention_heads": 6, "patch_hidden_sizes": (8, 16, 16), "classifier_hidden_size": 16, "num_labels": 3}
_STAGES = {"hidden_sizes": (48, 48, 96), "depths": (1, 1, 1), "num_groups": (16, 8, 8), "group_sizes": (8, 4, 4)}
_SINGLE = {"hidden_size": 48, "num_hidden_layers": 2, "num_groups": 8, "group_size": 8}
# Fields that differ from the defaults because the models are tiny.
FIELDS: dict[str, dict[str, Any]] = {
    "miss": {"r": 8},
    "pointlora": {"scales": [[16, 8, 4], [8, 8, 2]]},
    "shira": {"r": 4},
    "waveft": {"n_frequency": 64},
}
_POINTS = torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(0))
_LABELS = torch.tensor([0, 1, 2, 0])


# They refuse encoders of objects.
SCENE_TYPES = ("patch_prompt", "voxel_adapter")


def type_names() -> list[str]:
    """All types that can be trained on objects, those of this package first."""
    types = {member.value.lower(): config.__module__ for member, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    own = sorted(
        name for name, module in types.items() if module.startswith("point_peft_hf.") and name not in SCENE_TYPES
    )
    others = sorted(name for name, module in types.items() if module.startswith("peft.") and name not in PEFT_REFUSED)
    return [*own, *others]


def make_backbone(backbone: str) -> nn.Module:
    """A tiny backbone, with the same weights each time."""
    model_class, config_class = BACKBONES[backbone]
    sizes = _STAGES if backbone == "Point-M2AE" else _SINGLE
    torch.manual_seed(0)
    return model_class(config_class(**_BLOCKS, **sizes)).eval()


def _config_class(name: str) -> type[PeftConfig]:
    return next(c for m, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if m.value.lower() == name)


def make_config(name: str, backbone: nn.Module) -> PeftConfig:
    """The configuration of a type for a tiny backbone."""
    config_class = _config_class(name)
    if config_class.__module__.startswith("point_peft_hf."):
        return Method(name, 1e-3, config_class).config(**FIELDS.get(name, {}))
    return method_config(name, backbone, **FIELDS.get(name, {}))


class Probe:
    """One type on one backbone.

    Args:
        name: The type.
        backbone: The backbone.
    """

    def __init__(self, name: str, backbone: str):
        self.name, self.backbone = name, backbone

    def attached(self) -> PeftModel:
        """A fresh adapter on a fresh backbone."""
        backbone = make_backbone(self.backbone)
        torch.manual_seed(1)
        return get_peft_model(backbone, make_config(self.name, backbone))

    def trained(self) -> PeftModel:
        """An adapter after two steps."""
        model = self.attached()
        train(model)
        return model

    def trains(self) -> None:
        """Every trainable parameter gets a gradient."""
        for name, parameter in self.trained().named_parameters():
            require(not parameter.requires_grad or parameter.grad is not None, f"{name} gets no gradient")

    def saves(self) -> None:
        """What is loaded on an untouched backbone predicts the same, to the bit."""
        model = self.trained()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = PeftModel.from_pretrained(make_backbone(self.backbone), folder)
        require(torch.equal(predict(loaded), predict(model)), "a loaded adapter predicts something else")

    def merges(self) -> None:
        """The merged backbone predicts the same."""
        model = self.trained()
        expected = predict(model)
        require(close(predict(model.merge_and_unload()), expected), "the merged model predicts something else")

    def several(self) -> None:
        """A second adapter joins, and the first one predicts what it did when it is active again."""
        model = self.trained()
        expected = predict(model)
        model.add_adapter("second", make_config(self.name, model.get_base_model()))
        model.set_adapter("second")
        train(model)
        require(not close(predict(model), expected), "the second adapter predicts the same")
        model.set_adapter("default")
        require(close(predict(model), expected), "the first adapter predicts something else after a second one")

    def mixes_with(self, other: PeftConfig) -> None:
        """Both adapters work on one backbone, and are saved and loaded again."""
        model = make_backbone(self.backbone)
        torch.manual_seed(1)
        pp.add_adapters(model, {"own": make_config(self.name, model), "other": other})
        train(model)
        with tempfile.TemporaryDirectory() as folder:
            pp.save_adapters(model, folder)
            loaded = make_backbone(self.backbone)
            pp.load_adapters(loaded, folder)
        require(torch.equal(predict(loaded), predict(model)), "loaded adapters predict something else")

    def mixes_with_lora(self) -> None:
        """See [`mixes_with`]."""
        self.mixes_with(LoraConfig(r=2, target_modules=["q_proj", "fc1"]))

    def mixes_with_geometry(self) -> None:
        """See [`mixes_with`]."""
        self.mixes_with(pp.GeometryAdapterConfig(modules_to_save=[]))

    def checkpoints(self) -> None:
        """Gradient checkpointing gives the same gradients."""
        model, found = self.trained().train(), []
        for is_on in (False, True):
            if is_on:
                model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.zero_grad()
            torch.manual_seed(2)
            model(points=_POINTS, labels=_LABELS).loss.backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))
        require(same, "gradient checkpointing changes gradients")

    def exports(self) -> None:
        """`torch.export` gives a program that predicts the same."""
        model = self.trained().eval()
        expected = predict(model)
        program = torch.export.export(model, (), {"points": _POINTS}, strict=False)
        require(close(program.module()(points=_POINTS).logits, expected), "the program predicts something else")


CAPABILITIES: dict[str, Callable[[Probe], None]] = {
    "trains": Probe.trains,
    "saves": Probe.saves,
    "merges": Probe.merges,
    "several": Probe.several,
    "with LoRA": Probe.mixes_with_lora,
    "with geometry": Probe.mixes_with_geometry,
    "checkpointing": Probe.checkpoints,
    "export": Probe.exports,
}


def train(model: nn.Module) -> None:
    """Two steps."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(points=_POINTS, labels=_LABELS).loss.backward()
        optimizer.step()


@torch.no_grad()
def predict(model: nn.Module) -> torch.Tensor:
    """Logits in eval mode."""
    return model.eval()(points=_POINTS).logits


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4)


def require(condition: bool, otherwise: str) -> None:
    """Fail with a reason."""
    if not condition:
        raise ValueError(otherwise)


def probe(name: str, backbone: str, capability: str) -> str | None:
    """Why a type cannot do something on a backbone; `None` if it can."""
    reason = _why_not(lambda: CAPABILITIES[capability](Probe(name, backbone)))
    for mark in ("of type ", "PeftType."):
        reason = reason and reason.replace(mark + name.upper(), "of this type" if mark[0] == "o" else "this type")
    return reason


def _why_not(attempt: Callable[[], None]) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            attempt()
        except Exception as error:  # A reason of any kind is what is asked for.
            text = " ".join(str(error).split()) or type(error).__name__
            return text.split(". ")[0][:160].rstrip(".")
    return None


Results = dict[str, dict[str, dict[str, str | None]]]
Pairs = dict[tuple[str, str], str | None]


def probe_pair(names: tuple[str, str]) -> str | None:
    """Why two types of this package do not work together; `None` if they do on all backbones."""
    torch.set_num_threads(1)
    for backbone in BACKBONES:
        other = make_config(names[1], make_backbone(backbone))
        if reason := _why_not(lambda other=other, backbone=backbone: Probe(names[0], backbone).mixes_with(other)):
            # The types in brackets; the page names them.
            return re.sub(r" \([A-Z_]+\)", "", reason)
    return None


def own_pairs() -> list[tuple[str, str]]:
    """All pairs of types of this package."""
    own = [name for name in type_names() if _config_class(name).__module__.startswith("point_peft_hf.")]
    return list(itertools.combinations(own, 2))


def probe_type(name: str) -> dict[str, dict[str, str | None]]:
    """The reasons why not, by capability and backbone."""
    torch.set_num_threads(1)
    results: dict[str, dict[str, str | None]] = {capability: {} for capability in CAPABILITIES}
    for backbone in BACKBONES:
        # What cannot be attached and trained can do nothing else either.
        failed = probe(name, backbone, "trains")
        for capability in CAPABILITIES:
            is_known = failed or capability == "trains"
            results[capability][backbone] = failed if is_known else probe(name, backbone, capability)
    return results


def cell(reasons: dict[str, str | None]) -> str:
    """What the table says: yes, no, or the backbones on which it works."""
    able = [backbone for backbone, reason in reasons.items() if reason is None]
    return {0: "no", len(reasons): "yes"}.get(len(able), ", ".join(able))


def render(results: Results, pairs: Pairs) -> str:
    """The page."""
    rows = [
        f"| `{name}` | {' | '.join(cell(reasons) for reasons in capabilities.values())} |"
        for name, capabilities in results.items()
    ]
    why: dict[str, dict[str, list[str]]] = {}
    for name, capabilities in results.items():
        for capability, reasons in capabilities.items():
            for reason in dict.fromkeys(reason for reason in reasons.values() if reason):
                why.setdefault(reason, {}).setdefault(name, []).append(capability)
    causes = [f"- {reason}: {'; '.join(map(_in_words, names.items()))}" for reason, names in why.items()]
    refused = [f"- `{name}`: {reason}" for name, reason in sorted(PEFT_REFUSED.items())]
    apart: dict[str, list[str]] = {}
    for names, reason in pairs.items():
        if reason:
            apart.setdefault(reason, []).append(" with ".join(f"`{name}`" for name in names))
    return _PAGE.format(
        pairs="\n".join(f"- {reason}: {', '.join(listed)}" for reason, listed in apart.items()),
        backbones=", ".join(BACKBONES),
        header=" | ".join(CAPABILITIES),
        rule="|".join("---" for _ in range(len(CAPABILITIES) + 1)),
        rows="\n".join(rows),
        causes="\n".join(causes),
        refused="\n".join(refused),
    )


def _in_words(item: tuple[str, list[str]]) -> str:
    name, capabilities = item
    return f"`{name}` ({', '.join(capabilities)})"


_PAGE = """# Capabilities

What each adapter type does on each backbone: {backbones}.
`python docs/fill_capabilities.py` tries all of it on tiny models and writes this page.

- **trains**: every trainable parameter gets a gradient. **saves**: what is loaded predicts the same, to the bit.
- **merges**: `merge_and_unload()` predicts the same. **several**: adapters of the type can be switched.
- **with LoRA**, **with geometry**: both work together on one backbone (`add_adapters`), and load again.
- **checkpointing**: the gradients are the same. **export**: `torch.export` gives a program that predicts the same.

A cell names the backbones on which it works, if it does not on all.

| type | {header} |
|{rule}|
{rows}

## Mixed with each other

Any two types of this package work together on all of these backbones, are saved and load again, except:

{pairs}

## Why not

{causes}

## Types of peft that cannot be trained here

{refused}
"""


def main(argv: list[str] | None = None) -> int:
    """Try everything, and write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Compare with the page instead of writing it.")
    parser.add_argument("--processes", type=int, help="Processes; default: one for each core.")
    args = parser.parse_args(argv)
    names = type_names()
    with ProcessPoolExecutor(args.processes) as pool:
        results = pool.map(probe_type, names)
        pairs = dict(zip(own_pairs(), pool.map(probe_pair, own_pairs()), strict=True))
        page = render(dict(zip(names, results, strict=True)), pairs)
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
    elif page != PAGE.read_text(encoding="utf-8"):
        print(f"error: {PAGE} is out of date. Run `python docs/fill_capabilities.py`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
