"""The stream of pickles and raw storages that PyTorch wrote before version 1.6."""

from weights_converter.errors import CheckpointError
from weights_converter.pickles import load_pickle
from weights_converter.tensors import Contents, Storage

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
_COUNT_BYTES = 8


def open_legacy(data: memoryview) -> Contents:
    """Read the five pickles of a legacy file, and find every storage behind them.

    The third pickle tells the byte order of the machine that wrote the file. It says nothing of the
    storages: PyTorch writes those, and their counts, in little-endian order on every machine.

    Args:
        data: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    magic = load_pickle(data)
    if magic.value != MAGIC:
        raise CheckpointError("a pickle without the magic number of a PyTorch checkpoint")
    place = magic.length
    version = load_pickle(data[place:])
    if version.value != PROTOCOL_VERSION:
        raise CheckpointError(f"a legacy checkpoint of another version than {PROTOCOL_VERSION}")
    place += version.length
    place += load_pickle(data[place:]).length
    pickle = load_pickle(data[place:])
    place += pickle.length
    keys = load_pickle(data[place:])
    place += keys.length
    records = _find_records(data, place, keys.value, pickle.storages)

    def record(storage: Storage) -> memoryview:
        return records[storage.key]

    return Contents(pickle.value, pickle.storages, record, "<")


def _find_records(
    data: memoryview, place: int, keys: object, storages: dict[str, Storage]
) -> dict[str, memoryview]:
    """The bytes of each storage: from `place` on, in the order of `keys`, behind their counts."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("the keys of the storages are no list of strings")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise CheckpointError("the list of storages is not that of the tensors' storages")
    records = {}
    for key in keys:
        storage = storages[key]
        start = place + _COUNT_BYTES
        count = int.from_bytes(data[place:start], "little", signed=True)
        place = start + storage.nbytes
        if count != storage.count or place > len(data):
            raise CheckpointError(
                f"storage {key!a:.80} needs {storage.count} elements, but the file says {count} "
                f"and goes on for {max(len(data) - start, 0)} bytes"
            )
        records[key] = data[start:place]
    if place != len(data):
        raise CheckpointError(f"{len(data) - place} bytes follow the last storage")
    return records
