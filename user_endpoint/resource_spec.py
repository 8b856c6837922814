"""A task's resource_specification, checked before the task goes anywhere.

MPI engines require one; the others refuse it, since they would not provide the resources. The
keys are Parsl's. Called by the user endpoint, and again on the node that runs the task, which alone knows how
many nodes its block has.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from mep_wire.errors import ResourceSpecInvalid
from user_endpoint.settings import EngineSettings, GlobusMPISettings

EXAMPLE = "{'num_nodes': 2, 'ranks_per_node': 4}"
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class _Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_nodes: _Count | None = None
    ranks_per_node: _Count | None = None
    num_ranks: _Count | None = None
    launcher_options: str = ""


_given_decoder = msgspec.msgpack.Decoder(_Given, strict=False)


class Shape(msgspec.Struct, frozen=True):
    """How many nodes of a block one MPI task gets, and how many ranks on them."""

    nodes: int
    ranks_per_node: int
    ranks: int
    launcher_options: str


def shape_of(spec: bytes, block_nodes: int | None = None) -> Shape:
    """Return the shape that a resource_specification (MessagePack) asks for. Raises ResourceSpecInvalid.

    A missing value follows from the rest, or is 1. `block_nodes` is the number of nodes, if known.
    """
    given = _given(spec)
    nodes = given.num_nodes or math.ceil((given.num_ranks or 1) / (given.ranks_per_node or given.num_ranks or 1))
    each = given.ranks_per_node or math.ceil((given.num_ranks or nodes) / nodes)
    ranks = given.num_ranks or nodes * each
    if not nodes <= ranks <= nodes * each:
        reason = f"{ranks} ranks are not between one and {each} on each of {nodes} nodes"
        raise ResourceSpecInvalid(reason=reason)
    if block_nodes is not None and nodes > block_nodes:
        raise ResourceSpecInvalid(reason=f"it asks for {nodes} nodes, and a block has {block_nodes}")
    return Shape(nodes, each, ranks, given.launcher_options)


def _given(spec: bytes) -> _Given:
    if not spec:
        raise ResourceSpecInvalid(reason=f"this endpoint runs MPI tasks, which need one, e.g. {EXAMPLE}")
    try:
        found = _given_decoder.decode(spec)
    except msgspec.MsgspecError as error:
        accepted = ", ".join(_Given.__struct_fields__)
        raise ResourceSpecInvalid(reason=f"{error}; accepted are {accepted}, e.g. {EXAMPLE}") from error
    if found == _Given(launcher_options=found.launcher_options):
        raise ResourceSpecInvalid(reason=f"it says neither nodes nor ranks, e.g. {EXAMPLE}")
    return found


class ResourceRule:
    """The resources that tasks of one engine may ask for. `listed_only`: the site lists the functions that may run, and
    a launcher's options can name any program."""

    def __init__(self, engine: EngineSettings, *, listed_only: bool = False) -> None:
        self._listed_only = listed_only
        self._mpi = isinstance(engine, GlobusMPISettings)
        self._name = engine.__struct_config__.tag
        self._block_nodes: int | None = None
        if isinstance(engine, GlobusMPISettings):
            found = engine.nodes_per_block or engine.provider.get("nodes_per_block")
            self._block_nodes = found if isinstance(found, int) else None

    def check(self, spec: bytes) -> None:
        """Raises ResourceSpecInvalid."""
        if self._mpi:
            if shape_of(spec, self._block_nodes).launcher_options and self._listed_only:
                reason = "launcher_options: this endpoint runs listed functions alone, and options can name any program"
                raise ResourceSpecInvalid(reason=reason)
        elif spec and msgspec.msgpack.decode(spec):
            raise ResourceSpecInvalid(reason=f"this endpoint's {self._name} takes none; GlobusMPIEngine does")
