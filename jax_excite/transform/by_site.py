"""Values by the names of sites, as compiled functions return them."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BySite:
    """Values by name, in an order that compiled functions keep."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values: list[Any]

    @classmethod
    def of(cls, values: dict[str, Any]) -> "BySite":
        """From a dictionary, in its order."""
        return cls(tuple(values), list(values.values()))

    def by_name(self) -> dict[str, Any]:
        """The values in a dictionary."""
        return dict(zip(self.names, self.values, strict=True))
