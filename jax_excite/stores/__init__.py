"""Stores: attributions of whole data sets, on disk, written by runs that may be killed.

Needs the `[store]` extra, but for reading only tensorstore.
"""

from jax_excite.stores.reading import Store, open_store

__all__ = ["Store", "open_store"]
