"""Read a YAML file that a person wrote: safe, no key twice, every problem at once, with the nearest known key."""

from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from targets.errors import InputError, RecipeError, suggest

MAX_BYTES = 2**20

M = TypeVar("M", bound=BaseModel)


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """Read a mapping from a YAML file; raises InputError. what: for messages, e.g. `target`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{what} {str(path)!r} has more than {MAX_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {str(path)!r} is not UTF-8 text: {error.reason}") from error
    return parse_yaml(text, origin=f"{what} {str(path)!r}")


def parse_yaml(text: str, *, origin: str) -> dict[str, Any]:
    """Read a mapping from YAML text; raises InputError that begins with the origin."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice in one mapping; plain YAML takes the last one silently."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
            return dict(super().construct_mapping(node, deep))

    try:
        data = yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{origin} is not valid YAML{place}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # 2026-13-45 is a date to YAML; nested without end
        raise InputError(f"{origin} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(
            f"{origin} must hold keys and values, it holds {'nothing' if data is None else repr(data)[:60]}"
        )
    return data


def validate(model: type[M], data: dict[str, Any], *, origin: str) -> M:
    """Make a record of plain data; raises RecipeError with every problem, unknown keys with the nearest known one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_problem(model, one["type"], one["loc"], one["msg"], one["input"]) for one in error.errors()]
        raise RecipeError(origin, problems) from error


def _problem(model: type[BaseModel], kind: str, place: tuple[int | str, ...], message: str, given: object) -> str:
    where = ".".join(str(part) for part in place) or "all of it"
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {suggest(str(place[-1]), known_keys(model, place[:-1]))}"
    if kind == "missing":
        return f"{where}: is missing"
    text = message[0].lower() + message[1:]
    return f"{where}: {text}" if isinstance(given, dict) else f"{where}: {text}, got {given!r}"


def known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at a place; none where the type there cannot be told."""
    for part in place:
        if isinstance(part, int):  # an element of the tuple whose type is already resolved
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one record in an annotation such as tuple[Step, ...] or Budget | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
