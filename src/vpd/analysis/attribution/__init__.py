"""Attribution: what feeds what, over data and in one prompt (method.md §11)."""

from vpd.analysis.attribution.dataset import attribute_data
from vpd.analysis.attribution.effects import INPUT, OUTPUT, Effects, Wanted
from vpd.analysis.attribution.export import save_attributions, save_graph
from vpd.analysis.attribution.graph import Edge, Graph, Node, prompt_graph
from vpd.analysis.attribution.store import Attributions, load_attributions

__all__ = [
    "INPUT",
    "OUTPUT",
    "Attributions",
    "Edge",
    "Effects",
    "Graph",
    "Node",
    "Wanted",
    "attribute_data",
    "load_attributions",
    "prompt_graph",
    "save_attributions",
    "save_graph",
]
