"""The checkpoint inside the zip archive that PyTorch writes since version 1.6."""

from weights_converter.archive import Archive
from weights_converter.errors import CheckpointError
from weights_converter.pickles import MAX_PICKLE_BYTES, load_pickle
from weights_converter.tensors import Contents, Storage

_BYTE_ORDERS = {b"little": "<", b"big": ">"}


def open_zip(data: memoryview) -> Contents:
    """Read the pickle of a zip archive, and check every storage it mentions against its record.

    Args:
        data: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    archive = Archive(data)
    pickles = [name for name in archive.members if name.endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].rpartition("/")[2] != "data.pkl":
        raise CheckpointError(
            f"one record data.pkl and no other pickle is wanted, not {str(pickles)!a:.200}"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if archive.size(pickles[0]) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"record {pickles[0]!a:.200} is larger than {MAX_PICKLE_BYTES} bytes")
    encoded = archive.read(pickles[0])
    pickle = load_pickle(encoded)
    if pickle.length != len(encoded):
        raise CheckpointError(f"record {pickles[0]!a:.200} goes on after the pickle's STOP")
    for storage in pickle.storages.values():
        name = f"{prefix}data/{storage.key}"
        if archive.size(name) != storage.nbytes:
            raise CheckpointError(
                f"record {name!a:.200} has {archive.size(name)} bytes, "
                f"but its storage needs {storage.nbytes}"
            )

    def record(storage: Storage) -> memoryview:
        return archive.read(f"{prefix}data/{storage.key}")

    return Contents(pickle.value, pickle.storages, record, _byteorder(archive, prefix))


def _byteorder(archive: Archive, prefix: str) -> str:
    name = f"{prefix}byteorder"
    if name not in archive.members:
        return "<"  # before PyTorch 2.1
    record = archive.read(name)
    for word, order in _BYTE_ORDERS.items():
        if record == word:
            return order
    raise CheckpointError(f"record {name!a:.200} says neither little nor big")
