"""What a builder of a bank has so far, in memory and in a file that it can go on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_FORMAT = "partial_point_prior_bank"


class Collected:
    """Features of clouds with their positions, in any order."""

    def __init__(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("positions", "features", "labels", "sample_ids")
        }

    @property
    def positions(self) -> torch.Tensor:
        """Positions of the clouds that are known."""
        return torch.cat([torch.empty(0, dtype=torch.long), *self._parts["positions"]])

    def add(self, positions: list[int], features: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """Add a batch.

        Args:
            positions: Positions of its clouds in the data set.
            features: Their features, of shape `(batch_size, hidden_size)`.
            batch: The batch, for "labels" and "sample_ids".
        """
        self._parts["positions"].append(torch.tensor(positions))
        self._parts["features"].append(features)
        for name in ("labels", "sample_ids"):
            known = name in batch
            values = torch.as_tensor(batch[name]).flatten().cpu().long() if known else torch.full((len(features),), -1)
            if len(values) != len(features):
                raise ValueError(f"A batch for the bank has {len(features)} clouds but {len(values)} {name}.")
            self._parts[name].append(values)

    def state(self) -> dict[str, torch.Tensor]:
        """All that is known, as tensors; none if there is nothing."""
        return {name: torch.cat(parts) for name, parts in self._parts.items() if parts}

    @classmethod
    def merge(cls, states: Iterable[Mapping[str, torch.Tensor]]) -> Collected:
        """Put together what several processes have."""
        merged = cls()
        for state in states:
            for name, tensor in state.items():
                merged._parts[name].append(tensor)
        return merged

    def in_order(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, labels and sample ids by position, each position once."""
        state, order, seen = self.state(), [], set()
        positions = state["positions"].tolist()
        for index in sorted(range(len(positions)), key=positions.__getitem__):
            if positions[index] not in seen:
                seen.add(positions[index])
                order.append(index)
        return tuple(state[name][order] for name in ("features", "labels", "sample_ids"))


class PartialBank:
    """The file that a builder goes on from, one for each process.

    Args:
        path: The file; the number of the process is appended to its name. `None`: no file.
        rank: Number of the process.
        settings: What the features follow from; a file with others is refused.
    """

    def __init__(self, path: str | Path | None, rank: int, settings: dict[str, Any]):
        self.path = None if path is None else Path(path)
        self.own = None if path is None else Path(f"{path}.{rank}")
        self.settings = settings

    def save(self, collected: Collected) -> None:
        """Write what is known, as a whole or not at all."""
        self.own.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.own.with_name(self.own.name + ".tmp")
        save_file(collected.state(), temporary, metadata={_FORMAT: json.dumps(self.settings)})
        os.replace(temporary, self.own)

    def load(self) -> Collected:
        """What the last call had, on however many processes."""
        return Collected.merge(self._read(path) for path in self._files())

    def delete(self) -> None:
        """Remove the files."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self.path is None or not self.path.parent.is_dir():
            return []
        names = (path for path in self.path.parent.iterdir() if path.name.startswith(self.path.name + "."))
        return sorted(path for path in names if path.name.removeprefix(self.path.name + ".").isdecimal())

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {})[_FORMAT])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (KeyError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not the unfinished bank of an interrupted call ({error}). Pass another `checkpoint`."
            ) from error
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{path} is the unfinished bank of another call: its {name} is {settings.get(name)!r}, but this "
                    f"one has {value!r}. Delete the file, or pass another `checkpoint`."
                )
        return state


def digest_of_clouds(clouds: Iterable[torch.Tensor]) -> str:
    """A digest of clouds, each of shape `(num_points, 3)`."""
    digest = hashlib.sha256()
    for cloud in clouds:
        digest.update(str(tuple(cloud.shape)).encode())
        digest.update(cloud.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
