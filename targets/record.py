"""Record: the base of everything that is written to disk or crosses a process."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, strict about unknown fields, with one canonical JSON and one digest.

    Nothing inherits from a Record's subclass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")

    def canonical_json(self) -> str:
        """One spelling per value: sorted keys, defaults written out, no NaN."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def canonical_json(value: Any) -> str:
    """Serialise plain data in one spelling; refuses NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of plain data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
