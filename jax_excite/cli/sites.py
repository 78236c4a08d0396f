"""`jax-excite sites`: the gates of a network, by the index and name that other commands take."""

from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jax_excite.cli.console import errors_in_one_line
from jax_excite.cli.networks import DEFAULT_MODEL, ModelName, Prepared, find_spec, open_network
from jax_excite.transform.excite import sites as sites_of


def sites(model: ModelName = DEFAULT_MODEL, preprocessing: Prepared | None = None) -> None:
    """List the gates of a network by index and name, as --at takes them; needs no weights."""
    with errors_in_one_line():
        spec = find_spec(model)
        if spec is None:
            _, network = open_network(model, None, preprocessing=preprocessing)
            prepared = network.preprocessing
        else:
            network, prepared = spec.abstract(), spec.preprocessing
        shape = (1, prepared.size, prepared.size, prepared.channels)
        found = sites_of(network, jax.ShapeDtypeStruct(shape, np.float32))
        table = Table("index", "name", "shape per image", "how", box=None, pad_edge=False)
        for site in found:
            how = site.reason if site.gated else f"stays hard: {site.reason}"
            table.add_row(str(site.index), site.name, str(site.shape[1:]), how)
        console = Console(width=None if Console().is_terminal else 200)
        console.print(table, markup=False, highlight=False)
        console.print(f"{len(found)} sites of {Path(model).name} for an image of {shape[1:]}")
