"""Read the JSON of a plan strictly and check it against ``plan_schema.json``; an error names the field.

The text is untrusted. NaN, numbers out of bounds and repeated keys in an object, which Python's json module accepts,
are errors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fx_partition.common.errors import PartitionError

from .serialization import VERSION

_SCHEMA = Path(__file__).with_name("plan_schema.json")
_KINDS = {
    "array": "a list", "boolean": "true or false", "integer": "a whole number", "null": "null", "number": "a number",
    "object": "an object", "string": "a string",
}  # fmt: skip


class Unreadable(PartitionError):
    """Raised for a field that cannot be read; the message has the field's path and the reason."""

    def __init__(self, path: str, why: str) -> None:
        where = f"{path}: " if path else ""
        super().__init__(f"this is not a plan that can be read: {where}{why}; write plans with Plan.to_json()")


def read_form(text: str) -> dict[str, Any]:
    """Return the JSON object of a plan, after checking every field against the schema.

    Raises:
        PartitionError: the text is not JSON, or not a plan, or a plan of another version; it names the field.
    """
    try:
        data = _load(text)
        if not isinstance(data, dict) or "version" not in data:
            raise Unreadable("", "it has no version")
        if type(data["version"]) is not int or data["version"] != VERSION:
            raise Unreadable("version", f"it is {shown(data['version'])}, and this release reads {VERSION}")
        _check(data)
    except RecursionError as error:
        raise Unreadable("", "it is nested too deeply") from error
    return data


def _load(text: str) -> Any:
    if not isinstance(text, str):
        raise Unreadable("", f"it is {type(text).__name__} and not text")
    try:
        data = json.loads(
            text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_int=_number, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise Unreadable("", f"it is not JSON: {error}") from error
    if "\\" in text or not text.isascii():  # else no string can have such characters
        for found in _strings(data):
            if not found.isprintable():  # terminal control codes, or lone surrogates, which cannot be written to a file
                raise Unreadable("", f"it has the characters {shown(found)}, which cannot be printed")
    return data


def _strings(data: Any) -> Iterator[str]:
    """Yield all strings of a JSON value, keys included."""
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += [*value, *value.values()]


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Unreadable("", f"an object has the key {shown(twice)} twice")
    return found


def _no_constant(text: str) -> Any:
    raise Unreadable("", f"{text} is not a number of JSON")


def _number(text: str) -> int:
    return int(text[:40])  # 40 digits are out of bounds too, and Python takes long to read very many


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable("", f"the number {shown(text)} is too large")
    return value


def _check(data: dict[str, Any]) -> None:
    for error in _validator().iter_errors(data):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        raise Unreadable(path.removeprefix("."), _why(error))


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # slow to import: as long as reading most plans

    check_items = Draft202012Validator.VALIDATORS["items"]

    def items(validator: Any, schema: Any, value: Any, parent: Any) -> Iterator[Any]:
        """Check a list of names at once: one after another, 10,000 take 40 ms."""
        if schema == {"type": "string"} and isinstance(value, list) and all(type(item) is str for item in value):
            return
        yield from check_items(validator, schema, value, parent)

    def is_integer(checker: Any, value: Any) -> bool:  # jsonschema's own check accepts 1.0
        return type(value) is int

    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
    extend: Any = validators.extend
    kind = extend(Draft202012Validator, validators={"items": items}, type_checker=checker)
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return kind(_inlined(schema, schema.pop("$defs")))


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema with each reference replaced by its definition: following them takes half of a check's time."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inlined(part, definitions) for key, part in schema.items()}


def _why(error: Any) -> str:
    """Say in few words what is wrong with a value; the library's own message shows the whole value."""
    value, wanted = shown(error.instance), error.validator_value
    match error.validator:
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else wanted
            return f"{value} is not {' or '.join(_KINDS[kind] for kind in kinds)}"
        case "required":
            return f"it has no {next(name for name in wanted if name not in error.instance)!r}"
        case "additionalProperties":
            known = error.schema["properties"]
            return f"plans have no {shown(next(name for name in error.instance if name not in known))} there"
        case "enum":
            return f"{value} is not one of {', '.join(map(str, wanted))}"
        case "pattern":
            return f"{value} does not match {wanted}"
        case "minimum":
            return f"{value} is less than {wanted}"
        case "maximum":
            return f"{value} is more than {wanted}"
        case "minItems" | "maxItems":
            return f"it has {len(error.instance)} entries, and must have {wanted}"
    raise AssertionError(f"the schema has {error.validator}, and there is no message for it")


def shown(value: Any) -> str:
    """Return a JSON value for an error message, shortened."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"
