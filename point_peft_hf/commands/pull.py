"""Download an adapter with its backbone from the Hub, check both, and say what it is.

    point-peft pull you/my-adapter
    point-peft pull you/my-adapters --subfolder geometry --revision v1 --output_dir adapters/geometry

All commands take the name of a repository as well as a folder; what is pulled is kept in the Hub's cache and works
offline from then on. `--output_dir` also copies the adapter to a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..auto import AutoPointPeftModel
from ..io.files import CONFIG_NAME, WEIGHTS_NAME, find_file
from ..io.folders import replaced_folder
from ..io.push import FILES
from ..models.configuration import class_names_of
from ..training import show_only_own_messages
from . import make_parser


def main(arguments: Sequence[str], prog: str) -> None:
    """Download, check, and print what it is."""
    parser = make_parser(__doc__, prog)
    parser.add_argument("repo_id", help="Repository on the Hub, owner/name, or a folder.")
    parser.add_argument("--subfolder", help="Where in the repository.")
    parser.add_argument("--revision", help="Branch, tag or commit (default: main).")
    parser.add_argument("--output_dir", type=Path, help="Folder to copy the adapter to.")
    args = parser.parse_args(arguments)
    show_only_own_messages()
    where = {"subfolder": args.subfolder} | ({"revision": args.revision} if args.revision else {})
    if find_file(args.repo_id, CONFIG_NAME, **where) is None:
        raise ValueError(f"{args.repo_id} holds no adapter: there is no {CONFIG_NAME} in it. Pass its --subfolder?")
    model = AutoPointPeftModel.from_pretrained(args.repo_id, **where)
    backbone, config = model.get_base_model(), model.active_peft_config
    names = class_names_of(backbone.config)
    kind, size = getattr(config.peft_type, "value", config.peft_type), find_file(args.repo_id, WEIGHTS_NAME, **where)
    print(
        f"{args.repo_id}: {kind} on {backbone.name_or_path} ({type(backbone).__name__}), "
        f"{size.stat().st_size / 1e6:.2f} MB, {len(names)} classes: {', '.join(names)}"
    )
    if args.output_dir is not None:
        found = {name: path for name in FILES if (path := find_file(args.repo_id, name, **where)) is not None}
        with replaced_folder(args.output_dir) as folder:
            for name, path in found.items():
                (folder / name).write_bytes(path.read_bytes())
        print(f"Copied to {args.output_dir}")
