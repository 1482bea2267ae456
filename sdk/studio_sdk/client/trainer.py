"""The two forms in which a client brings its training: Python callbacks, or a package's entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import tensors
from ..errors import TaskFailed
from ..tensors import Arrays
from .tasks import HeldTask

Train = Callable[[Arrays, dict[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]]
Validate = Callable[[Arrays, dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """One task with what it needs on disk. `update` is where a training's canonical safetensors file goes."""

    held: HeldTask
    model: Path
    settings: dict[str, Any]
    update: Path


class Trainer(Protocol):
    """Works on one job at a time. All raise TaskFailed, TaskCancelled, or SdkError when the client must end."""

    can_validate: bool

    def prepare(self) -> None:
        """Once, before the first connection."""

    def prepare_task(self, held: HeldTask) -> None:
        """Before each task: what does not need the model."""

    def train(self, job: Job) -> tuple[str, dict[str, Any]]:
        """Write the update; return its sha256 and the metadata, `num_examples` among it."""

    def validate(self, job: Job) -> Mapping[str, Any]:
        """The metrics of the job's model."""


class CallbackTrainer:
    """Python functions in this process: `train(arrays, settings) -> (arrays, metadata)`,
    `validate(arrays, settings) -> metrics`. The arrays given are read-only views of the model file."""

    def __init__(self, train: Train | None, validate: Validate | None) -> None:
        self._train = train
        self._validate = validate
        self.can_validate = validate is not None

    def prepare(self) -> None:
        """Nothing to do."""

    def prepare_task(self, held: HeldTask) -> None:
        """Nothing to do."""

    def train(self, job: Job) -> tuple[str, dict[str, Any]]:
        """Call the training function."""
        if self._train is None:
            raise TaskFailed("This client has no training function.")
        arrays, metadata = self._train(tensors.read_file(job.model), job.settings)
        checked = with_num_examples(metadata, "the training function's metadata")
        return write_update(arrays, job), checked

    def validate(self, job: Job) -> Mapping[str, Any]:
        """Call the validation function."""
        if self._validate is None:
            raise TaskFailed("This client has no validation function.")
        return self._validate(tensors.read_file(job.model), job.settings)


def write_update(arrays: Mapping[str, Any], job: Job) -> str:
    """Write the update in the order and dtypes of the model; its sha256."""
    try:
        return tensors.write_file(job.update, arrays, like=tensors.dtype_names(job.model))
    except tensors.TensorFileError as error:
        raise TaskFailed(f"The update cannot be sent: {error}") from None


def with_num_examples(metadata: Any, where: str) -> dict[str, Any]:
    """The metadata as a dictionary; TaskFailed when `num_examples` is missing or no number."""
    if not isinstance(metadata, Mapping):
        raise TaskFailed(f"{where} must be a JSON object with num_examples.")
    count = metadata.get("num_examples")
    try:
        float(count)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TaskFailed(
            f"{where} lacks num_examples: the number of training examples, a number above 0."
        ) from None
    return dict(metadata)
