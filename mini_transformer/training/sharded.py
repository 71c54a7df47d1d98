"""A checkpoint as a folder into which each rank writes its parts, while training goes on.

It is torch's distributed checkpoint in its safetensors form, which, unlike the usual one, has no pickle anywhere; plain
values are in a JSON file beside. Reading takes parts of any number of ranks together, for any other number.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from mini_transformer import checksums
from mini_transformer.errors import UserError
from mini_transformer.files import disk_error, publish, read_json, write_json

NOTE = "checkpoint.json"  # the plain values
NOT_SHARED = "`out_dir`: {} must be a folder that all nodes share"


class _Writer(HuggingFaceStorageWriter):
    """Writes under a temporary name. When the parts of all ranks are on disk, rank 0 gives the folder its own."""

    def __init__(self, path: Path, note: dict[str, Any], then: Callable[[], None]) -> None:
        self.temporary = path.with_name(f".{path.name}.temporary")
        super().__init__(str(self.temporary), save_distributed=True)
        self.final, self.note, self.then = path, note, then

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        names = {result.storage_data.relative_path for part in results for result in part}
        if not all((self.temporary / name).is_file() for name in names):
            raise UserError(NOT_SHARED.format(self.final.parent))
        write_json(self.temporary / NOTE, self.note)
        checksums.write(self.temporary)
        publish(self.temporary, self.final)
        self.then()


def save(
    path: Path, tensors: dict[str, Any], note: dict[str, Any], group: dist.ProcessGroup, then: Callable[[], None]
) -> "Future[Any]":
    """Copy the tensors, and write them behind the back of training; `result_of` waits until they are written.

    `group`: a process group for this alone (gloo). `then`: called on rank 0 when the folder is there.
    """
    writer = _Writer(path, note, then)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about uses of torch inside of torch
        written = async_save(tensors, storage_writer=writer, process_group=group)
    assert isinstance(written, Future)
    return written


def result_of(written: "Future[Any]", path: Path) -> None:
    """Wait until a checkpoint is written by all ranks. Raises `OSError` or `UserError` on each if one could not."""
    try:
        written.result()
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, UserError):
                raise cause from None
            if on_disk := disk_error(cause, path):
                raise on_disk from None
        raise RuntimeError(str(error)) from None


def read_note(path: Path) -> dict[str, Any]:
    """The plain values. Raises `UserError` or `ValueError` unless all parts are there as they were written."""
    if not checksums.is_whole(path):
        raise ValueError("a part is missing or damaged")
    note: dict[str, Any] = read_json(path / NOTE)
    return note


def read_into(path: Path, tensors: dict[str, Any]) -> None:
    """Fill tensors, and this rank's parts of them, with what was saved under their names. No rank waits for another."""
    reader = HuggingFaceStorageReader(str(path))
    reader.read_metadata()  # fails here without a word on the terminal
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no process group is meant
            load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise next(cause for cause, _ in error.failures.values()) from None
