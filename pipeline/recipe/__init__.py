"""Recipe: what a user asks for, one YAML file. Read with every problem told at once; published as a JSON Schema.

text.py       YAML → plain data with line numbers
overrides.py  --set key=value, written into that data
model.py      the recipe's types
schema.py     the JSON Schema of a recipe, and what it allows at one place
wording.py    what is wrong, as sentences
paths.py      ${NAME} filled in, relative paths made absolute
load.py       all of it in order
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
