"""Does a trained adapter use what is in its bank? Its predictions with the bank stored otherwise, or exchanged.

    python examples/bank_content.py outputs/point_peft
    python examples/bank_content.py results/bank/adapters/all*/seed-* --data path/to/data

"random directions" have nothing to do with any cloud: an adapter that predicts as well with them has not learnt to use
its bank. "one entry" gives all clouds the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from point_peft_hf.training import Predictor, find_method, load_task, show_only_own_messages
from point_peft_hf.training.task import PROCEDURAL
from point_peft_hf.tuners.point_prior_prompt.bank import bank_layers
from point_peft_hf.tuners.point_prior_prompt.quantization import dequantize, quantize

EXCHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as int8": lambda entries: dequantize(*quantize(entries, torch.int8), torch.float32),
    "random directions": lambda entries: F.normalize(
        torch.randn(entries.shape, generator=torch.Generator().manual_seed(0)), dim=-1
    ),
    "one entry": lambda entries: entries[:1].expand_as(entries).clone(),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+", help="Folders of trained adapters with a bank.")
    parser.add_argument("--method", help="package.module:Config, where adapters are of a type of your own.")
    parser.add_argument("--data", default=PROCEDURAL, help="Data set whose test clouds are predicted.")
    parser.add_argument("--layout", help="Layout of the folder, where it holds several data sets.")
    parser.add_argument("--max_test_clouds", type=int, default=600, help="Test clouds (default: %(default)s).")
    parser.add_argument("--batch_size", type=int, default=50, help="Clouds at a time (default: %(default)s).")
    return parser.parse_args()


def main() -> None:
    """Print a table: accuracy, and how many predictions are others than before."""
    args = parse_arguments()
    show_only_own_messages()
    if args.method:
        find_method(args.method)  # registers its type
    test = load_task(args.data, layout=args.layout, max_test_clouds=args.max_test_clouds).test
    clouds = [test[index]["points"] for index in range(len(test))]
    print("| adapter | bank | accuracy | other predictions |\n|---|---|---|---|")
    for folder in args.adapters:
        predictor = Predictor.from_pretrained(folder)
        predictor.check_classes(test.class_names)
        bank = bank_of(predictor.model, folder)
        features, scales = bank.features, bank.scales
        entries = dequantize(features, scales, torch.float32)
        before = None
        for name, exchange in {"its own": None, **EXCHANGES}.items():
            bank.features, bank.scales = (features, scales) if exchange is None else (exchange(entries), None)
            predicted = predictor.predict_classes(clouds, args.batch_size)
            before = predicted if before is None else before
            accuracy, others = (predicted == np.asarray(test.labels)).mean(), (predicted != before).mean()
            print(f"| {folder} | {name} | {100 * accuracy:.1f} % | {100 * others:.1f} % |", flush=True)


def bank_of(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    """The bank of the active adapter.

    Raises:
        ValueError: If it has none, or one without entries.
    """
    banks = [layer.part("bank", name) for layer in bank_layers(model) for name in layer.active_adapters]
    bank = banks[0] if banks else None
    if bank is None or len(bank) == 0:
        raise ValueError(f"{folder} has no bank. Train --method point_peft or prompt, with `use_bank`.")
    return bank


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
