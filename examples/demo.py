"""Serve a page to try adapters on: the command `point-peft demo`.

python examples/demo.py outputs/point_peft outputs/lora
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
