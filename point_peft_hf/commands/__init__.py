"""The command `point-peft`: one module for each of its subcommands, thin over the package."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from huggingface_hub.errors import HfHubHTTPError

import point_peft_hf

from ..training import TrainingStopped, find_method, show_only_own_messages
from ..training.precision import PRECISIONS

COMMANDS = {
    "train": "Fine-tune one or more methods on your data.",
    "predict": "Classify files or folders, or label their points.",
    "evaluate": "Measure an adapter on labelled data, class by class.",
    "visualize": "Draw what an adapter makes of a cloud, and how its training went.",
    "demo": "Serve a page to try adapters on.",
    "serve": "Serve adapters over HTTP: POST a file, get JSON.",
    "export": "Write an adapter with its backbone to a .pt2 or .onnx file.",
    "methods": "List the methods.",
    "push": "Push an adapter to the Hub.",
    "pull": "Download an adapter with its backbone.",
    "convert": "Convert a published checkpoint.",
}
_LOGIN = (401, 403)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: The command line without the name of the program; default: that of this process.

    Returns:
        The exit status: 0 if all went well, 1 after an error, 3 if some files could not be read.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _overview()
    if not arguments or arguments[0] not in COMMANDS:
        # Prints the help or the version, or refuses the name.
        parser.parse_args(arguments or ["--help"])
        return 0
    name, *rest = arguments
    module = importlib.import_module(f".{name}", __name__)
    try:
        return module.main(rest, f"{parser.prog} {name}") or 0
    except (ImportError, OSError, ValueError, TrainingStopped, HfHubHTTPError) as error:
        # What a person can mend needs no traceback.
        sys.exit(f"error: {error}{_hint(error)}")
    except Exception as error:
        # The HTTP library of the Hub's client, which was another one in earlier versions.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        sys.exit(f"error: The Hub cannot be reached ({type(error).__name__}: {error}). Try again with a connection.")


def make_parser(description: str | None, prog: str) -> argparse.ArgumentParser:
    """A parser that prints a module's docstring as it is."""
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def make_adapter_parser(description: str | None, prog: str) -> argparse.ArgumentParser:
    """A parser with the options of all commands that load adapters."""
    parser = make_parser(description, prog)
    parser.add_argument("--method", help="package.module:Config, where an adapter is of a type of your own.")
    parser.add_argument("--model", help="Backbone: a name, a folder or a Hub repository (default: the adapter's).")
    return parser


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that run a model."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="What matrices are multiplied in; bfloat16 is faster where the hardware has it (default: float32).",
    )


def make_server_parser(description: str | None, prog: str, port: int) -> argparse.ArgumentParser:
    """A parser with the options of commands that serve several adapters."""
    parser = make_adapter_parser(description, prog)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="Folders or Hub repositories of adapters.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to serve at; 0.0.0.0 for the whole network.")
    parser.add_argument("--port", type=int, default=port, help="Default: %(default)s.")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Mute other libraries, and register the type that `--method` names."""
    show_only_own_messages()
    if args.method:
        find_method(args.method)


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="point-peft",
        description="Parameter-efficient fine-tuning of pre-trained point-cloud transformers.",
        epilog=f"commands:\n{listed}\n\n`point-peft COMMAND --help` says more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="One of the commands below.")
    parser.add_argument("--version", action="version", version=f"point-peft {point_peft_hf.__version__}")
    return parser


def _hint(error: Exception) -> str:
    """What to do about an error of the Hub that its own message does not say."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status not in _LOGIN:
        return ""
    return (
        "\nThe Hub refused the request. Log in with `hf auth login`, with a token that may write if you push, and "
        "check that the repository's name starts with your user name or an organisation of yours."
    )
