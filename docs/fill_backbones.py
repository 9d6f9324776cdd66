"""Write docs/backbones.md: sizes, classes, published weights and licences of the backbones.

    python docs/fill_backbones.py           # from the root of the repository
    python docs/fill_backbones.py --check   # fail if the page says something else

Sizes are counted on models without memory; classes are those that this package has. Where weights were published, and
under what licence, is what their publishers state.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

import point_peft_hf as pp
from point_peft_hf.models.convert_config import WEIGHTS_LICENSES
from point_peft_hf.models.convert_ptv3 import LICENSES

PAGE = Path(__file__).with_name("backbones.md")
TASKS = ("Model", "ForPreTraining", "ForClassification", "ForSegmentation")


class Published(NamedTuple):
    """A model as it was published.

    Attributes:
        name: Its name, with the paper.
        prefix: What the names of its classes here begin with.
        fields: Fields of its configuration that are not the defaults.
        pretrained_on: What it was pre-trained on.
        files: Where its weights are: names of repositories of torch-pointcloud on the Hub, without the organisation.
    """

    name: str
    prefix: str
    fields: dict[str, Any]
    pretrained_on: str
    files: tuple[str, ...] = ()


_DEEP = (256, 512, 1024, 2048)
MODELS = (
    Published(
        "Point-MAE (arXiv 2203.06604)",
        "PointMAE",
        {},
        "ShapeNet55",
        ("point-mae-base.pretrain.yatian-pang", "point-mae-base.modelnet40.yatian-pang"),
    ),
    Published("ACT (arXiv 2212.08320)", "PointMAE", {}, "ShapeNet55, with a teacher of images"),
    Published(
        "PCP-MAE (arXiv 2408.08753)",
        "PointMAE",
        {"position_embedding": "sincos", "position_hidden_size": 384},
        "ShapeNet55",
    ),
    Published(
        "Point-BERT (arXiv 2111.14819)",
        "PointBert",
        {},
        "ShapeNet55",
        ("point-bert-base.pretrain.xumin-yu", "point-bert-base.modelnet40.xumin-yu"),
    ),
    Published(
        "Point-M2AE (arXiv 2205.14401)",
        "PointM2AE",
        {},
        "ShapeNet55",
        ("point-m2ae-base.pretrain.renrui-zhang", "point-m2ae-base.modelnet40.renrui-zhang"),
    ),
    Published("ReCon (arXiv 2302.02318)", "ReCon", {}, "ShapeNet55, with images and text"),
    Published(
        "PointGPT-S (arXiv 2305.11487)",
        "PointGPT",
        {},
        "ShapeNet55",
        ("pointgpt-s.pretrain.guangyan-chen", "pointgpt-s.scanobjectnn-hardest.guangyan-chen"),
    ),
    Published(
        "PointGPT-B",
        "PointGPT",
        {"hidden_size": 768, "num_attention_heads": 12, "patch_hidden_sizes": _DEEP},
        "UnlabeledHybrid, made of several data sets",
        ("pointgpt-b.pretrain.guangyan-chen", "pointgpt-b.scanobjectnn-hardest.guangyan-chen"),
    ),
    Published(
        "PointGPT-L",
        "PointGPT",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_hidden_sizes": _DEEP},
        "UnlabeledHybrid, made of several data sets",
        ("pointgpt-l.pretrain.guangyan-chen", "pointgpt-l.scanobjectnn-hardest.guangyan-chen"),
    ),
)


_BASE = {"depths": (3, 3, 3, 12, 3), "num_attention_heads": (3, 6, 12, 24, 32)}
_SUPERVISED = {
    "in_channels": 6,
    "feature_names": ("colors", "normals"),
    "stem": "sparse",
    "pooling": "code",
    "norm": "batch",
    "legacy_position_features": True,
    "read_out": "decoder",
}
_TINY = {"hidden_sizes": (18, 36, 72, 144, 216), "num_attention_heads": (1, 2, 4, 8, 12)}
_UTONIA = {"rope_base": 10, "grid_size": 0.01}
SCENE_MODELS = (
    Published("Sonata-small (arXiv 2503.16429)", "", {}, "indoor scenes", ("facebook/sonata: sonata_small.pth",)),
    Published(
        "Sonata-base, Concerto-base (arXiv 2510.23607)",
        "",
        {**_BASE, "hidden_sizes": (48, 96, 192, 384, 512)},
        "indoor scenes; Concerto with images",
        ("facebook/sonata", "Pointcept/Concerto: concerto_base.pth"),
    ),
    Published(
        "Concerto-large",
        "",
        {
            "depths": _BASE["depths"],
            "hidden_sizes": (64, 128, 256, 512, 768),
            "num_attention_heads": (4, 8, 16, 32, 48),
        },
        "indoor scenes, with images",
        ("Pointcept/Concerto: concerto_large.pth",),
    ),
    Published("Utonia-tiny (arXiv 2603.03283)", "", {**_TINY, **_UTONIA}, "scenes and objects", ("Pointcept/Utonia",)),
    Published(
        "Utonia",
        "",
        {**_BASE, "hidden_sizes": (54, 108, 216, 432, 576), **_UTONIA},
        "scenes and objects",
        ("Pointcept/Utonia: utonia.pth",),
    ),
    Published(
        "Point Transformer V3, supervised (arXiv 2312.10035)",
        "",
        _SUPERVISED,
        "ScanNet, ScanNet200 or S3DIS, with labels",
        ("torch-pointcloud/ptv3-base.scannet20.pointcept", "torch-pointcloud/ptv3-base.s3dis-area5.pointcept"),
    ),
)


def scene_row(model: Published) -> list[str]:
    """One line of the table of encoders of scenes."""
    config = pp.PointTransformerV3Config(**model.fields)
    with torch.device("meta"):
        encoder = pp.PointTransformerV3Model(config)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    blocks = f"{' + '.join(map(str, config.depths))}, widths {', '.join(map(str, config.hidden_sizes))}"
    blocks += f", decoder {' + '.join(map(str, config.decoder_depths))}" if config.has_decoder else ""
    files = "<br>".join(f"`{name}`" for name in model.files)
    return [model.name, blocks, f"{count:,}", model.pretrained_on, LICENSES[config.stem].upper(), files]


def row(model: Published) -> list[str]:
    """One line of the table."""
    config = getattr(pp, f"{model.prefix}Config")(**model.fields, num_labels=15)
    with torch.device("meta"):
        classifier = getattr(pp, f"{model.prefix}ForClassification")(config)
    count = sum(parameter.numel() for parameter in classifier.parameters())
    if hasattr(config, "depths"):
        blocks = f"{' + '.join(map(str, config.depths))}, widths {', '.join(map(str, config.hidden_sizes))}"
    else:
        blocks = f"{config.num_hidden_layers}, width {config.hidden_size}"
    classes = ", ".join(f"`{task}`" for task in TASKS if hasattr(pp, f"{model.prefix}{task}"))
    options = ", ".join(f'`{k}="{v}"`' for k, v in model.fields.items() if isinstance(v, str))
    model_type = f"`{config.model_type}`" + (f", {options}" if options else "")
    files = "<br>".join(f"`torch-pointcloud/{name}`" for name in model.files) or "files of its repository"
    license = WEIGHTS_LICENSES[config.model_type].upper()
    return [model.name, model_type, blocks, f"{count:,}", classes, model.pretrained_on, license, files]


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The whole page."""
    heading = ["model", "`model_type`", "blocks", "parameters", "classes", "pre-trained on", "licence", "weights"]
    lines = [heading, ["---"] * len(heading), *map(row, MODELS)]
    table = _table(lines)
    heading = ["model", "blocks", "parameters", "pre-trained on", "licence", "weights"]
    scenes = _table([heading, ["---"] * len(heading), *map(scene_row, SCENE_MODELS)])
    return f"""# Backbones

Written by `python docs/fill_backbones.py`. *Parameters*: of the classifier of 15 classes. *Licence*: of the weights,
as their publishers state it; converting a file prints it, and the card of an adapter repeats it. *Weights*: names on
the Hub that `from_pretrained` reads (the organisation has more of most), or files of the research repository for
`point-peft convert`. All adapter types of this package attach to all of these models;
[capabilities.md](capabilities.md) has what each of them, and each of peft's, does on each backbone.

{table}

Tokens that adapters insert stand in front of the patch tokens. In PointGPT, whose tokens only see those in front of
them, patch tokens see them all; in ReCon they are in the branch of the patch tokens, which the three tokens look at.
Neighbourhoods are those of the centres, in whatever order the groups are.

Not read, with the reason in the message: Point-FEMAE (no licence was published).

## Encoders of scenes

All of them are one `model_type`, `ptv3`, with the classes `PointTransformerV3Model`,
`PointTransformerV3ForSemanticSegmentation` and `PointTransformerV3ForClassification`; see
[scene_encoders.md](scene_encoders.md). *Parameters*: of the encoder, with the decoder of the supervised model. Weights
under CC-BY-NC-4.0 are not for commercial use; an adapter is of no use without them, and its card repeats the licence.

{scenes}
"""


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(arguments)
    text = page()
    if not args.check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() != text:
        print(f"{PAGE.name} is not what docs/fill_backbones.py writes: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
