"""Write an adapter with its backbone to one file that runs without this package.

    point-peft export outputs/point_peft                              # point_peft.pt2, for torch.export.load
    point-peft export outputs/point_peft --format onnx --opset 20     # point_peft.onnx
    point-peft export outputs/parts --output models/parts.onnx
    point-peft export outputs/lora --format onnx --precision int8     # a third of the size

ONNX files need the extra `export`. The batch size is free. The file takes clouds as the processor of the adapter
prepares them, and its metadata say how that is: number of points, sampling, scaling, names of the classes. It is
compared with the model on a few clouds, and only written if both agree. With weights of 8 bits (int8) they agree to a
few per cent: what is printed then was measured on 32 generated shapes, so measure it on your own data as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..export import FORMATS, METADATA_NAME, PRECISIONS, Exported, check_format, export_model
from ..training import load_predictor
from . import make_adapter_parser, prepare


def main(arguments: Sequence[str], prog: str) -> None:
    """Export, and print what was written and how to use it."""
    parser = make_adapter_parser(__doc__, prog)
    parser.add_argument("adapter", metavar="ADAPTER", help="Folder or Hub repository of the adapter.")
    parser.add_argument("--output", type=Path, help="The file (default: the name of the adapter, in this folder).")
    parser.add_argument("--format", choices=FORMATS, help="Default: what the ending of --output says, else torch.")
    parser.add_argument("--opset", type=int, help="Version of the operators of an ONNX file (default: PyTorch's).")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="Of an ONNX file (default: float32)."
    )
    args = parser.parse_args(arguments)
    if args.output is None:
        args.format = args.format or "torch"
        args.output = Path(Path(args.adapter).resolve().name + FORMATS[args.format])
    check_format(args.output, args.format, args.opset, args.precision)  # before the adapter is downloaded
    prepare(args)
    predictor = load_predictor(args.adapter, args.model)
    options = {"format": args.format, "opset": args.opset, "precision": args.precision}
    exported = export_model(predictor.model, predictor.processor, args.output, **options)
    opset = f", opset {exported.opset}" if exported.opset else ""
    what = "points" if exported.metadata["task"] == "part_segmentation" else "clouds"
    same = f", {100 * exported.agreement:.0f} % of the {what} get the same label" if args.precision == "int8" else ""
    print(
        f"{exported.path}: {exported.num_bytes / 1e6:.1f} MB{opset}; its logits differ from the model's by "
        f"{exported.difference:.1e} of the largest{same}.\n{_usage(exported)}"
    )


def _usage(exported: Exported) -> str:
    """How to run the file, in three lines of Python."""
    path, count = str(exported.path), exported.metadata["num_points"]
    names = ["points", *(["category_ids"] if "num_categories" in exported.metadata else [])]
    comment = f"    # points: float32, (batch_size, {count}, 3)"
    if exported.format == "onnx":
        inputs = ", ".join(f'"{name}": {name}' for name in names)
        lines = (
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({path!r})    # .get_modelmeta().custom_metadata_map",
            f'(logits,) = session.run(["logits"], {{{inputs}}}){comment}',
        )
    else:
        inputs = ", ".join(f"{name}={name}" for name in names)
        lines = (
            f'metadata = {{"{METADATA_NAME}": ""}}',
            f"program = torch.export.load({path!r}, extra_files=metadata).module()",
            f"logits = program({inputs}){comment}",
        )
    return "\n".join(f"    {line}" for line in lines)
