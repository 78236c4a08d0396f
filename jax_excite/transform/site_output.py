"""The output of a site in place of the outputs of a function: targets inside of the network."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export

from jax_excite.errors import TargetError
from jax_excite.graphs.graph import Constant, Graph, Node
from jax_excite.transform.channels import channel_axis
from jax_excite.transform.independence import batch_axis
from jax_excite.transform.interpret import Values
from jax_excite.transform.sites import Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SiteOutput:
    """The output of a site, with the items along axis 0.

    Attributes:
        value: `[N, ...]`. For a site in a loop, `...` starts with an axis for the steps.
        name: the name of the site.
        channel_axis: the axis of `value` that holds channels, or None if it is not known.
    """

    value: jax.Array
    name: str = dataclasses.field(metadata={"static": True})
    channel_axis: int | None = dataclasses.field(metadata={"static": True})


export.register_pytree_node_serialization(
    SiteOutput,
    serialized_name="jax_excite.SiteOutput",
    serialize_auxdata=lambda static: json.dumps(static).encode(),
    deserialize_auxdata=lambda text: tuple(json.loads(text)),
)


@dataclasses.dataclass(frozen=True, eq=False)
class TargetSite:
    """A site whose output a target refers to.

    Attributes:
        graph: the part of the function's graph that the output depends on; it has no outputs.
        node: the node that computes the output.
        site: the site.
        loops: the number of loops around it, each of which adds a leading axis to what is
            collected.
        items: the axis of the items in the output of the node.
        channels: the axis of the channels in the output of the node, or None if it is not known.
    """

    graph: Graph
    node: Node
    site: Site
    loops: int
    items: int
    channels: int | None

    @staticmethod
    def of(graph: Graph, inputs: Sequence[int], node: Node, site: Site) -> "TargetSite":
        """Find the axes of a site's output, and the nodes that it depends on.

        Args:
            graph: the graph of a function of a batch.
            inputs: those of its inputs that have the items along axis 0.
            node: the node that computes the output of the site.
            site: the site.

        Raises:
            TargetError: the axis of the items is not known, or the output cannot be extracted.
        """
        path = _path(graph, node)
        outside = [around.name for around in path[:-1] if around.name in ("while", "shard_map")]
        if outside:
            raise TargetError(
                f"at is {site.name}, which is inside `{outside[0]}`: its output cannot be "
                "extracted from there"
            )
        items = batch_axis(graph, inputs, node.outputs[0])
        if items is None:
            raise TargetError(
                f"at is {site.name}, whose output has shape "
                f"{graph.types[node.outputs[0]].shape}: which axis holds the items cannot be "
                "determined"
            )
        loops = sum(around.name == "scan" for around in path[:-1])
        return TargetSite(
            _below(graph, path[0]), node, site, loops, items, channel_axis(graph, node)
        )

    def output(self, collected: Values) -> SiteOutput:
        """The output of the site, from the values that the interpreter collected."""
        if self.node.number not in collected:
            raise TargetError(
                f"at is {self.site.name}, which is inside a function with its own derivative rule: "
                "give the function's name in enter="
            )
        value = jnp.moveaxis(collected[self.node.number], self.loops + self.items, 0)
        channels = None
        if value.ndim == 2:
            channels = 1
        elif self.channels not in (None, self.items):
            channels = self.loops + self.channels + (self.channels < self.items)
        return SiteOutput(value, self.site.name, channels)


def _path(graph: Graph, wanted: Node) -> list[Node]:
    """The nodes around a node, outermost first, and the node itself."""
    for node in graph.nodes:
        if node is wanted:
            return [node]
        for body in node.bodies:
            if inner := _path(body, wanted):
                return [node, *inner]
    return []


def _below(graph: Graph, last: Node) -> Graph:
    """The nodes of a graph that a node depends on, and the node itself."""
    needed: set[int] = set(last.outputs)
    nodes = []
    for node in reversed(graph.nodes[: graph.nodes.index(last) + 1]):
        if node is last or needed.intersection(node.outputs):
            nodes.append(node)
            needed |= {o for o in node.inputs if not isinstance(o, Constant)}
    return Graph(graph.inputs, [], nodes[::-1], graph.types)
