"""Stores: attributions of whole data sets on disk, written by runs that may be killed.

Writing needs the `[store]` extra; reading needs only tensorstore.
"""

from jax_excite.stores.reading import Store, open_store

__all__ = ["Store", "open_store"]
