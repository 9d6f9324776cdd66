"""What is each part of Point-PEFT worth? The study `studies/ablation.yaml`, run by `compare.py`.

    python examples/ablate.py --jobs 2
    python examples/ablate.py --data path/to/modelnet40_ply_hdf5_2048 --jobs 2

One choice of the method is changed at a time: a part removed, neighbourhoods made or used otherwise, the number and
depth of prompts, the width of the bottlenecks. The options are those of `compare.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import compare

from point_peft_hf.training import TrainingStopped

ABLATION = Path(__file__).parent / "studies" / "ablation.yaml"

if __name__ == "__main__":
    try:
        compare.main([str(ABLATION), *sys.argv[1:]])
    except (OSError, TrainingStopped, ValueError) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}")
