"""Weights from the Hugging Face Hub, through `huggingface_hub` and its cache."""

import sys
from pathlib import Path

from jax_excite.errors import WeightsError
from jax_excite.models.timm import CONFIG

WEIGHTS = "model.safetensors"


def from_hub(repository: str) -> Path:
    """The weights of a repository, with its description beside them, downloaded if necessary.

    A download is announced on standard error. What has been downloaded is found without a network.

    Raises:
        WeightsError: the package `huggingface_hub` is missing, or the download fails; the message
            names the files and says where they can be put.
    """
    try:
        from huggingface_hub import hf_hub_download, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"{repository} is on the Hugging Face Hub, which needs the package huggingface_hub: "
            f"pip install jax-excite[hub]. {_by_hand(repository)}"
        ) from error
    paths = []
    for file in (CONFIG, WEIGHTS):
        try:
            found = hf_hub_download(repository, file, local_files_only=True)
        except LocalEntryNotFoundError:
            address = hf_hub_url(repository, file)
            print(f"downloading {address}", file=sys.stderr, flush=True)
            try:
                found = hf_hub_download(repository, file)
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise WeightsError(
                    f"cannot download {address}: {reason}. {_by_hand(repository)}"
                ) from error
        paths.append(Path(found))
    return paths[-1]


def _by_hand(repository: str) -> str:
    return (
        f"To continue without it, get {WEIGHTS} and {CONFIG} from "
        f"https://huggingface.co/{repository} by other means, put them into one folder, and give "
        f"the path: load({repository!r}, weights='FOLDER/{WEIGHTS}')"
    )
