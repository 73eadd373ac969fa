"""From a network to a torch.export program, at one image size or at any."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from ..ops import use_lowering

SIDES = {0: "batch", 2: "height", 3: "width"}
"""The axes of images that an exported file names."""


def capture(network: nn.Module, size: tuple[int, int], channels: int, *, dynamic_size: bool) -> ExportedProgram:
    """Trace a network in evaluation mode with a batch of any size.

    Args:
        network: module on images (B, C, H, W).
        size: (H, W) of the images; with ``dynamic_size`` their size is any.
        channels: C.
        dynamic_size: whether height and width are symbols too.

    Returns:
        The program.
    """
    dynamic = SIDES if dynamic_size else {0: SIDES[0]}
    # Sides that no two parts of the graph can take for each other, nor for a single token.
    traced = (size[0] * 3, size[1] * 2) if dynamic_size else size
    image = torch.zeros(2, channels, *traced)
    # Only so is an axis that is no single token while tracing not taken for one that never is.
    with quietly(), use_lowering("dft"), symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            network, (image,), dynamic_shapes=(dict.fromkeys(dynamic, Dim.DYNAMIC),), strict=False
        )
    _merge_equal(program)
    _forget_guards(program)
    return program


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the exporters' advice to their developers off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _merge_equal(program: ExportedProgram) -> None:
    """Keep the first of equal nodes: every filter of a stage has made the matrices of the same grid."""
    first: dict[str, torch.fx.Node] = {}
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if same is not node:
            node.replace_all_uses_with(same)
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _forget_guards(program: ExportedProgram) -> None:
    """Let every axis have any length.

    Tracing notes for which lengths its choice of memory layouts holds, such as grids of several tokens; the graph
    does not depend on them.
    """
    program._guards_code = []
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(1, int_oo)
