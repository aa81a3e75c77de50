"""GraphCard: what is known of a model that came as an ONNX graph; it stands where a ViT has its spec."""

from typing import Literal

from pydantic import Field

from targets.preprocess import Preprocess
from targets.record import Record

CARD_FILE = "graph.json"


class GraphCard(Record):
    """A model of which only the graph is known."""

    format: Literal["vitrim.graph/1"] = "vitrim.graph/1"
    architecture: str
    """name of the file that it came from"""
    preprocess: Preprocess
    classes: int = Field(ge=0, description="outputs that are classes; 0: they are features")
    params: int = Field(ge=0)
    macs: int = Field(ge=0, description="multiply-accumulates of one image")
