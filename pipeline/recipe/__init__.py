"""Recipe: what a user asks for, one YAML file. Read with every problem told at once; published as a JSON Schema.

model.py      the recipe's types
load.py       text → Recipe, in the order of the files below
overrides.py  --set key=value, written into the text's data
paths.py      ${NAME} filled in, relative paths made absolute
steps.py      stages with their options, in an order that works
schema.py     the JSON Schema: what may be written
"""

from pipeline.recipe.load import demo_recipe_path, load_recipe, parse_recipe
from pipeline.recipe.model import Data, Measure, Recipe, Step, known_stages
from pipeline.recipe.overrides import apply_overrides
from pipeline.recipe.schema import recipe_schema

__all__ = [
    "Data",
    "Measure",
    "Recipe",
    "Step",
    "apply_overrides",
    "demo_recipe_path",
    "known_stages",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
]
