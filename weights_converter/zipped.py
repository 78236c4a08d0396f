"""The checkpoint inside the zip archive that PyTorch has written since version 1.6."""

from weights_converter.archive import Archive
from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record
from weights_converter.pickles import MAX_PICKLE_BYTES, load_pickle
from weights_converter.tensors import Contents, Storage

_BYTE_ORDERS = {b"little": "<", b"big": ">"}


def open_zip(file: File) -> Contents:
    """Read the pickle of a zip archive, and check every storage it mentions against its record.

    Args:
        file: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    archive = Archive(file)
    _refuse_programs(archive)
    pickles = pickles_of(archive)
    if len(pickles) != 1 or pickles[0].rpartition("/")[2] != "data.pkl":
        raise CheckpointError(
            "the archive needs one record data.pkl and no other pickle, but has "
            f"{str(pickles)!a:.200}"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    encoded = read_pickle(archive, pickles[0])
    pickle = load_pickle(encoded)
    if pickle.length != len(encoded):
        raise CheckpointError(f"record {pickles[0]!a:.200} continues after the pickle's STOP")
    records = {
        key: _find_record(archive, f"{prefix}data/{key}", storage)
        for key, storage in pickle.storages.items()
    }
    return Contents("zip", pickle.value, records, _byteorder(archive, prefix))


def _refuse_programs(archive: Archive) -> None:
    """Raise `CheckpointError` if the archive holds a program instead of a state dict."""
    files = {name.partition("/")[2] for name in archive.records}
    if "constants.pkl" in files or any(name.startswith("code/") for name in files):
        kind = "TorchScript (torch.jit.save)"
    elif "archive_format" in files or any("exported_program" in name for name in files):
        kind = "an exported program (torch.export.save)"
    else:
        return
    raise CheckpointError(
        f"it holds {kind}, which cannot be read: save the weights alone with "
        "torch.save(module.state_dict(), path)"
    )


def pickles_of(archive: Archive) -> list[str]:
    """The names of the pickles in an archive."""
    return [name for name in archive.records if name.endswith(".pkl")]


def read_pickle(archive: Archive, name: str) -> bytes:
    """The bytes of one of the pickles in an archive.

    Raises:
        CheckpointError: there are too many bytes, or they are damaged.
    """
    if archive.find(name).size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"record {name!a:.200} is larger than {MAX_PICKLE_BYTES} bytes")
    return archive.read(name)


def _find_record(archive: Archive, name: str, storage: Storage) -> Record:
    record = archive.find(name)
    if record.size != storage.nbytes:
        raise CheckpointError(
            f"record {name!a:.200} has {record.size} bytes, but its storage needs {storage.nbytes}"
        )
    return record


def _byteorder(archive: Archive, prefix: str) -> str:
    name = f"{prefix}byteorder"
    if name not in archive.records:
        return "<"  # before PyTorch 2.1
    if archive.find(name).size <= max(map(len, _BYTE_ORDERS)):
        record = archive.read(name)
        if record in _BYTE_ORDERS:
            return _BYTE_ORDERS[record]
    raise CheckpointError(f'record {name!a:.200} contains neither "little" nor "big"')
