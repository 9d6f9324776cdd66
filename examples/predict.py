"""Classify files or folders, or label their points: the command `point-peft predict`.

python examples/predict.py scan.ply --adapter outputs/point_peft
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
