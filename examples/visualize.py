"""Draw what an adapter makes of a cloud: the command `point-peft visualize`.

python examples/visualize.py scan.ply --adapter outputs/point_peft
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))
