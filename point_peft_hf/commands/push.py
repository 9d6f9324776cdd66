"""Push an adapter that training saved to the Hub, and check that what is pulled from there predicts the same.

    hf auth login
    point-peft push outputs/point_peft --repo_id you/my-adapter --private
    point-peft push outputs/geometry --repo_id you/my-adapters --subfolder geometry --tag v1
    point-peft push outputs/point_peft --repo_id you/my-adapter --backbone you/my-backbone

A backbone that comes with the package goes by its name. One from a folder has to be on the Hub as well, or nobody else
could use the adapter: `--backbone` names its repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from peft import get_peft_model_state_dict

from ..auto import AutoPointPeftModel
from ..io import push_adapter
from ..training import show_only_own_messages
from . import make_parser


def main(arguments: Sequence[str], prog: str) -> None:
    """Push, pull, compare."""
    args = _parse(arguments, prog)
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
    # Loading has compared the backbones.
    # "auto" would ask the Hub for a vocabulary.
    here, there = (get_peft_model_state_dict(each, save_embedding_layers=False) for each in (local, pulled))
    if here.keys() != there.keys() or not all(torch.equal(here[name], there[name]) for name in here):
        raise ValueError(f"What was pulled from {args.repo_id} does not predict the same as {args.folder}.")
    print(f'Pulled: AutoPointPeftModel.from_pretrained("{args.repo_id}") predicts the same as {args.folder}.')


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
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
    return parser.parse_args(arguments)
