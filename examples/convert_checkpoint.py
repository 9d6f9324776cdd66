"""Convert a published checkpoint: the command `point-peft convert`.

python examples/convert_checkpoint.py pretrain.pth point-mae-base --model_type point_mae
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
