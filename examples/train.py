"""Fine-tune a pre-trained point transformer: the command `point-peft train`.

    accelerate launch examples/train.py                                    # linear probe and Point-PEFT, built-in data
    accelerate launch examples/train.py --method lora --data path/to/folder
    accelerate launch --config_file examples/accelerate_configs/multi_gpu.yaml examples/train.py --sync_batch_norm

`--help` prints the usual arguments, `--help_all` every one.
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
