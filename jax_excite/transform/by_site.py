"""Values by site name, in a form that compiled functions can return."""

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
        """Convert a dictionary, keeping its order."""
        return cls(tuple(values), list(values.values()))

    def by_name(self) -> dict[str, Any]:
        """The values as a dictionary."""
        return dict(zip(self.names, self.values, strict=True))
