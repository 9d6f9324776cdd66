"""`python -m point_peft_hf` is the command `point-peft`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
