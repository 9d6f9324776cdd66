"""Convert a published checkpoint of an encoder of objects or scenes to a folder for `from_pretrained`.

    point-peft convert pretrain.pth point-mae-base --model_type point_mae
    point-peft convert scan_hardest.pth point-mae-scan --model_type point_mae --config config.json
    point-peft convert stag_scan.pth stag-scan --model_type point_mae --method stag
    point-peft convert concerto_base.pth concerto-base --model_type ptv3
    point-peft convert model_best.pth ptv3-run --model_type ptv3 --variant ptv3-repaired

Reads the files of the research repositories (pre-training and fine-tuned, and those of ACT and PCP-MAE, which have the
encoder of Point-MAE; Sonata, Concerto, Utonia and supervised Point Transformer V3) and of the package
torch-pointcloud. Widths, depth and classes are read from the tensors;
`--config` gives heads, groups, their sizes and radii where they are not the published ones. A file with more inside of
the encoder than the model has is refused. Nothing in the file can run code.

With `--method` the file of a fine-tuning method becomes two folders, `backbone` and `adapter`, which together compute
what was published; `--config` then holds the options of backbone and method by their published names, in one flat
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..models.convert import ADAPTER, BACKBONE, MODEL_CLASSES, convert_checkpoint
from ..models.convert_ptv3 import VARIANTS
from . import make_parser


def main(arguments: Sequence[str], prog: str) -> None:
    """Convert, and print what was loaded, what is new and what was ignored."""
    parser = make_parser(__doc__, prog)
    parser.add_argument("input", help="A .pth or .safetensors file, or a folder with model.safetensors.")
    parser.add_argument("output_dir", help="Folder to write.")
    parser.add_argument("--model_type", required=True, choices=sorted(MODEL_CLASSES))
    parser.add_argument("--config", help="JSON file with fields of the configuration.")
    parser.add_argument(
        "--method", help="Fine-tuning method that the file is of, such as stag: make an adapter of it."
    )
    parser.add_argument(
        "--variant", choices=sorted(VARIANTS), help="Of a ptv3: what it is, where its file does not say it."
    )
    args = parser.parse_args(arguments)
    report = convert_checkpoint(
        args.input, args.output_dir, args.model_type, args.config, method=args.method, variant=args.variant
    )
    print(report)
    folder = args.output_dir if args.method is None else str(Path(args.output_dir) / BACKBONE)
    print(f"Load it with point_peft_hf.{report.architecture}.from_pretrained({folder!r}).")
    if args.method is not None:
        adapter = str(Path(args.output_dir) / ADAPTER)
        print(f"Then attach the adapter with peft.PeftModel.from_pretrained(model, {adapter!r}).")
