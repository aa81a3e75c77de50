"""The JSON Schema of a recipe, for editors: every stage with its options."""

from typing import Any

from pydantic.json_schema import models_json_schema

from pipeline.recipe.model import IMPLIED, Recipe, known_stages
from stages.catalog import get_stage


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe as people write it."""
    stages = {name: get_stage(name).options for name in known_stages() if name not in IMPLIED}
    refs, together = models_json_schema(
        [(Recipe, "validation"), *((options, "validation") for options in stages.values())]
    )
    definitions: dict[str, Any] = together["$defs"]
    own = definitions.pop("Recipe")
    definitions.pop("Step", None)
    definitions.pop("Record", None)
    own["properties"].pop("text")
    own["properties"]["steps"] = {
        "description": "stages in the order in which they run; export is put in where it is missing",
        "type": "array",
        "default": [],
        "items": {
            "anyOf": [
                {"enum": list(stages)},
                *(
                    {
                        "type": "object",
                        "properties": {name: {"anyOf": [refs[options, "validation"], {"type": "null"}]}},
                        "required": [name],
                        "additionalProperties": False,
                        "description": get_stage(name).summary,
                    }
                    for name, options in stages.items()
                ),
            ]
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **own,
        "title": "vitrim recipe",
        "$defs": definitions,
    }
