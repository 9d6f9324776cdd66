"""Pushing an adapter to the Hub, in one commit."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    hf_hub_download,
)
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from .card import MARK, is_generated, is_public, read_adapter, write_model_card
from .examples import EXAMPLES_NAME
from .files import (
    BACKBONE_NAME,
    CARD_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    read_json,
    write_json,
)

FILES = (CONFIG_NAME, WEIGHTS_NAME, BACKBONE_NAME, PROCESSOR_NAME, RECORD_NAME, CARD_NAME, EXAMPLES_NAME)
_FOLDER_ARGUMENTS = {"data", "model", "output_dir", "resume_from_checkpoint"}
_LOCAL_PATH = re.compile(r"/|~|\.\.|file:|[A-Za-z]:[/\\]|\\\\")


def push_adapter(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    subfolder: str | None = None,
    backbone: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    license: str = "apache-2.0",
) -> CommitInfo:
    """Push a saved adapter with all that is needed to predict with it, and a card that loads it from there.

    All files go in one commit, so that the repository never holds half an adapter; if nothing has changed, there is no
    commit. Nothing else in the folder is pushed, and no paths of this machine.

    Args:
        folder: The folder of the adapter, from `save_adapter` or training.
        repo_id: The repository, "owner/name"; it is created if need be.
        subfolder: Where in the repository, to have several adapters in one.
        backbone: Repository of the backbone; needed if the adapter was trained on a backbone in a folder.
        private: Whether a repository that is created is private.
        revision: Branch to push to; it is created if need be.
        tag: A tag to give the commit.
        token: Token of the Hub; default: that of `hf auth login`.
        commit_message: What the commit says.
        license: Licence of the adapter, for the card.

    Returns:
        The commit, or the latest one if nothing has changed.

    Raises:
        ValueError: If the adapter is damaged, or if others could not find its backbone.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        staged = _stage(Path(folder), Path(temporary), backbone)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        write_model_card(staged, repo_id, subfolder=subfolder, license=license)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        names = [name for name in FILES if (staged / name).is_file()]
        if _is_kept(api, repo_id, prefix + CARD_NAME, revision, staged / CARD_NAME):
            names.remove(CARD_NAME)
        operations = [CommitOperationAdd(prefix + name, str(staged / name)) for name in names]
        present = _files(api, repo_id, revision)
        if subfolder and not _is_kept(api, repo_id, CARD_NAME, revision, None):
            overview = _overview(repo_id, present, prefix.strip("/"), license)
            operations.append(CommitOperationAdd(CARD_NAME, overview.encode()))
        # Files of an earlier push that this adapter does not have do not describe it.
        stale = {prefix + name for name in (RECORD_NAME, BACKBONE_NAME, EXAMPLES_NAME) if name not in names} & present
        operations += [CommitOperationDelete(path) for path in sorted(stale)]
        message = commit_message or f"Push adapter{f' {subfolder}' if subfolder else ''}"
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def _files(api: HfApi, repo_id: str, revision: str | None) -> set[str]:
    try:
        return set(api.list_repo_files(repo_id, revision=revision))
    except RevisionNotFoundError:  # a pull request that is only opened with this commit
        return set()


def _stage(folder: Path, staged: Path, backbone: str | None) -> Path:
    """Copy what goes to the Hub, without what is only of use on this machine."""
    name = backbone or read_adapter(folder).fields.get("base_model_name_or_path")
    if not is_public(name):
        raise ValueError(
            f"The adapter in {folder} was trained on the backbone {name!r}, which others cannot find. Push the "
            "backbone first (`backbone.push_to_hub('owner/name')`), then pass `backbone='owner/name'`."
        )
    for file in FILES:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, staged / file)
    fields = read_json(staged / CONFIG_NAME)
    if name != fields.get("base_model_name_or_path"):
        # The revision was one of another place.
        write_json(staged / CONFIG_NAME, {**fields, "base_model_name_or_path": name, "revision": None})
    if (staged / RECORD_NAME).is_file():
        write_json(staged / RECORD_NAME, _for_others(read_json(staged / RECORD_NAME)))
    return staged


def _for_others(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the folders of this machine, whose names may be private.

    The command line goes: its arguments are in the record as well, each under its name.
    """
    if "runs" in record:
        return {**record, "runs": [_for_others(run) for run in record["runs"]]}
    shown = {name: value for name, value in record.items() if name != "command"}
    if "arguments" in record:
        shown["arguments"] = {
            name: _last_part(value)
            if name in _FOLDER_ARGUMENTS and value is not None and not (name == "model" and is_public(value))
            else value
            for name, value in record["arguments"].items()
        }
    return _without_paths(shown)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return _last_part(value) if isinstance(value, str) and _LOCAL_PATH.match(value) else value


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _is_kept(api: HfApi, repo_id: str, path: str, revision: str | None, own: Path | None) -> bool:
    """Whether a card in the repository was written by a person, and is not replaced by one that was as well."""
    if own is not None and not is_generated(own):
        return False
    try:
        return not is_generated(hf_hub_download(repo_id, path, revision=revision, token=api.token))
    except EntryNotFoundError:
        return False


def _overview(repo_id: str, files: set[str], subfolder: str, license: str) -> str:
    """The card of a repository that holds several adapters."""
    folders = {match[1] for file in files if (match := re.fullmatch(rf"(.+)/{re.escape(CONFIG_NAME)}", file))}
    rows = [
        f'* [{name}]({name}/README.md): `AutoPointPeftModel.from_pretrained("{repo_id}", subfolder="{name}")`'
        for name in sorted(folders | {subfolder})
    ]
    metadata = ModelCardData(
        library_name="peft", license=license, pipeline_tag="other", tags=["point-cloud", "point_peft_hf", "peft"]
    )
    title = repo_id.rsplit("/", 1)[-1]
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n# {title}\n\nAdapters for point clouds:\n\n"
        + "\n".join(rows)
        + "\n\nEach loads with `from point_peft_hf import AutoPointPeftModel`.\n"
    )
