"""Push an adapter and check what is pulled: the command `point-peft push`.

python examples/push_and_pull.py outputs/point_peft --repo_id you/my-adapter --private
"""

import sys

from point_peft_hf.commands import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
