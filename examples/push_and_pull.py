"""Share an adapter: push what training saved to the Hub, pull it again, and check that both predict the same.

    hf auth login
    python examples/push_and_pull.py outputs/point_peft --repo_id you/my-adapter --private
    python examples/push_and_pull.py outputs/geometry --repo_id you/my-adapters --subfolder geometry --tag v1
    python examples/push_and_pull.py outputs/point_peft --repo_id you/my-adapter --backbone you/my-backbone

A backbone that comes with the package goes by its name. One from a folder has to be on the Hub as well, or nobody else
could use the adapter: `--backbone` names its repository.
"""

from __future__ import annotations

import argparse
import sys

import torch
from huggingface_hub.errors import HfHubHTTPError

from point_peft_hf import AutoPointPeftModel
from point_peft_hf.io import push_adapter
from point_peft_hf.training import show_only_own_messages


def parse_arguments() -> argparse.Namespace:
    """Read the arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="Folder of the adapter, as training wrote it.")
    parser.add_argument("--repo_id", required=True, help="Repository on the Hub: owner/name.")
    parser.add_argument("--subfolder", help="Where in the repository, to have several adapters in one.")
    parser.add_argument(
        "--backbone", help="Repository of the backbone, if the adapter was trained on one in a folder."
    )
    parser.add_argument("--revision", help="Branch to push to (default: main).")
    parser.add_argument("--tag", help="Tag for the commit.")
    parser.add_argument("--private", action="store_true", help="Make the repository private, if it is created.")
    parser.add_argument("--license", default="apache-2.0", help="Licence of the adapter (default: apache-2.0).")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Push, pull, compare."""
    args = parse_arguments()
    show_only_own_messages()
    commit = push_adapter(
        args.folder,
        args.repo_id,
        subfolder=args.subfolder,
        backbone=args.backbone,
        private=args.private or None,
        revision=args.revision,
        tag=args.tag,
        license=args.license,
    )
    print(f"Pushed: {commit.commit_url}")

    pulled = AutoPointPeftModel.from_pretrained(
        args.repo_id, subfolder=args.subfolder, revision=args.tag or args.revision
    )
    local = AutoPointPeftModel.from_pretrained(args.folder)
    points = torch.rand(2, 1024, 3) * 2 - 1
    if not torch.equal(pulled(points=points).logits, local(points=points).logits):
        raise ValueError(f"What was pulled from {args.repo_id} does not predict the same as {args.folder}.")
    print(f'Pulled: AutoPointPeftModel.from_pretrained("{args.repo_id}") predicts the same as {args.folder}.')


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
