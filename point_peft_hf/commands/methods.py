"""List the methods of `point-peft train --method`: what each trains, and its default learning rate.

    point-peft methods
    point-peft methods lora

With a name, print the fields of its configuration, which `--config` takes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from ..training.methods import METHODS, SCENE_METHODS, find_method
from . import make_parser


def main(arguments: Sequence[str], prog: str) -> None:
    """Print a line for each method, or the fields of one."""
    parser = make_parser(__doc__, prog)
    parser.add_argument("name", nargs="?", metavar="NAME", help="A method; default: list them.")
    args = parser.parse_args(arguments)
    if args.name is not None:
        _describe(args.name)
        return
    for title, methods in (("Objects and scenes", METHODS), ("Scenes", SCENE_METHODS)):
        print(f"{title}:")
        for name, method in methods.items():
            print(f"  {name:14} {method.learning_rate:<7g} {method.description}")
    print("Types of peft work by their names (--method boft), types of your own as package.module:Config.")


def _describe(name: str) -> None:
    method = find_method(name)
    print(f"{name}: {method.description}; learning rate {method.learning_rate:g}")
    config = method.config()
    for field in dataclasses.fields(config) if config is not None else ():
        if field.init:
            value = getattr(config, field.name)
            print(f"  {field.name} = {json.dumps(value, default=str)}")
