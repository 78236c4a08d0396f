"""The stream of pickles and raw storages that PyTorch wrote before version 1.6."""

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record
from weights_converter.streams import Stream
from weights_converter.tensors import Contents, Storage

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def open_legacy(file: File) -> Contents:
    """Read the five pickles of a legacy file, and find every storage after them.

    The third pickle records the byte order of the machine that wrote the file. It does not apply to
    the storages: PyTorch writes them, and their counts, in little-endian order on every machine.

    Args:
        file: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    stream = Stream(file, 0, file.size)
    if stream.small_pickle() != MAGIC:
        raise CheckpointError("a pickle without the magic number of a PyTorch checkpoint")
    if stream.small_pickle() != PROTOCOL_VERSION:
        raise CheckpointError(f"a legacy checkpoint of a version other than {PROTOCOL_VERSION}")
    stream.small_pickle()
    pickle = stream.pickle()
    records = _find_records(stream, stream.pickle().value, pickle.storages)
    return Contents("legacy", pickle.value, records)


def _find_records(stream: Stream, keys: object, storages: dict[str, Storage]) -> dict[str, Record]:
    """The record of each storage; the storages lie in the order of `keys`."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("the keys of the storages are not a list of strings")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise CheckpointError("the list of storages differs from the storages of the tensors")
    records = {}
    for key in keys:
        _, records[key] = stream.record(key, storages[key].dtype, storages[key].count)
    if stream.left:
        raise CheckpointError(f"{stream.left} bytes follow the last storage")
    return records
