"""The folder of a checkpoint: one file for each step kept, and one for the best."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_vae.errors import DataError, EngineError
from ppl_vae.infer.identity import differences
from ppl_vae.records import packed, read_record, write_record

__all__ = ["Found", "StepFiles", "Written"]

FORMAT = 3
KEY = "ppl_vae checkpoint"
BEST = "best.safetensors"


@dataclass(frozen=True)
class Written:
    """What a file holds beside its header: a step, the best score until then, and a state as JSON and tensors."""

    step: int
    best: float
    state: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, step: int, best: float, state: Any) -> "Written":
        """The state taken apart; its tensors are still those of the engine."""
        return cls(step, best, *packed(state))

    def copied(self) -> "Written":
        """With tensors of its own."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        return Written(self.step, self.best, self.state, tensors)


@dataclass(frozen=True)
class Found:
    """The newest file that can be read, and the errors of those after it that cannot."""

    path: Path
    record: dict[str, Any]
    tensors: dict[str, Tensor]
    damaged: Mapping[Path, DataError] = field(default_factory=dict)

    def checked(self, header: Mapping[str, Any]) -> Written:
        """Its contents, if it was written under this header, or under one that differs in having fewer epochs.

        Raises
        ------
        EngineError
            If another call wrote it: the message says what differs.
        """
        stored = {"format": self.record["format"], **self.record["header"]}
        if stored.get("epochs", math.inf) < header.get("epochs", 0):  # a training is the beginning of a longer one
            stored["epochs"] = header["epochs"]
        if different := differences(stored, {"format": FORMAT, **header}):
            raise EngineError(
                f"{self.path} is the checkpoint of another call: {'; '.join(different[:3])}. Repeat that call, or keep "
                "this one in another place"
            )
        return Written(self.record["step"], self.record["best"], self.record["state"], self.tensors)

    def set_aside(self) -> None:
        """Take the damaged files out of the way, with a warning for each."""
        for path, error in self.damaged.items():
            path.rename(f"{path}.damaged")
            warnings.warn(f"{error}; it is now {path.name}.damaged, and {self.path.name} is used", stacklevel=4)


@dataclass(frozen=True)
class StepFiles:
    """The files step-<number>.safetensors of a folder, the highest number the newest, and best.safetensors."""

    folder: Path

    def tidy(self) -> None:
        """Remove what a writer that was killed has left."""
        for left in self.folder.glob(".*.safetensors.*"):
            left.unlink(missing_ok=True)

    def steps(self) -> list[Path]:
        """The newest last."""
        return sorted(self.folder.glob(f"step-{'[0-9]' * 12}.safetensors"))

    def newest(self, recover: bool) -> Found | None:
        """The last step, or with `recover` the last that can be read; None in a folder without any."""
        files, damaged = self.steps(), dict[Path, DataError]()
        while files:
            path = files.pop()
            try:
                return Found(path, *read_record(path, KEY, "checkpoint"), damaged)
            except DataError as error:
                if not (recover and files):
                    raise DataError(f"{error}; {_remedy(files)}") from error
                damaged[path] = error
        return None

    def best(self) -> Found | None:
        """The state with the best score, None where there is none."""
        path = self.folder / BEST
        return Found(path, *read_record(path, KEY, "checkpoint")) if path.is_file() else None

    def write_step(self, header: Mapping[str, Any], state: Written, keep: int) -> None:
        """Write the file of a step, and remove all but the last `keep`."""
        self._write(f"step-{state.step:012d}.safetensors", header, state)
        for path in self.steps()[:-keep]:
            path.unlink(missing_ok=True)

    def write_best(self, header: Mapping[str, Any], state: Written) -> None:
        """Write the file of the best state."""
        self._write(BEST, header, state)

    def _write(self, name: str, header: Mapping[str, Any], state: Written) -> None:
        own = {"step": state.step, "best": state.best, "state": state.state}
        try:
            write_record(self.folder / name, {"format": FORMAT, "header": header, **own}, state.tensors, KEY)
        except DataError as error:
            raise DataError(
                f"{error}. The same call goes on from what {self.folder} holds, also in another place: "
                "move the folder, and name the new one in checkpoint="
            ) from error


def _remedy(older: list[Path]) -> str:
    if not older:
        return "delete it to start anew"
    return f"delete it to go on from {older[-1].name}, or let pv.checkpoints(..., recover=True) put it aside"
