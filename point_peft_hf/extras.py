"""How to install the libraries of an extra, in the way that this package was installed itself."""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "point-peft-hf"


def install_command(extra: str) -> str:
    """The command that installs an extra.

    Args:
        extra: Its name, as in "viz".

    Returns:
        For an editable checkout and a wheel in a file, a command that names them; else one that names the package.
    """
    try:
        source = json.loads(metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):  # run from a folder on the Python path
        source = {}
    url = str(source.get("url", ""))
    if not url:
        return f"pip install '{_NAME}[{extra}]'"
    if source.get("dir_info", {}).get("editable") and url.startswith("file:"):
        return f"pip install -e '{url2pathname(urlsplit(url).path)}[{extra}]'"
    scheme = f"{source['vcs_info']['vcs']}+" if "vcs_info" in source else ""
    return f"pip install '{_NAME}[{extra}] @ {scheme}{url}'"
