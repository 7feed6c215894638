"""What all records have in common, and the types of their keys."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT_VERSION: Literal[2] = 2
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Time = Annotated[float, Field(ge=0, lt=1e11)]  # seconds since 1970
Logged = int | float | tuple[int | float, ...] | None  # in a row of a training's log: a number, or one for each depth
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ShardName = Annotated[str, Field(pattern=r"^[0-9]{6,12}-[0-9a-f]{8}\.tar$")]
PartName = Annotated[str, Field(pattern=r"^manifest-[0-9]{4,8}-[0-9a-f]{8}\.json$")]


def _finite(tree: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the tree if all its numbers are finite."""
    json.dumps(tree, allow_nan=False)
    return tree


Tree = Annotated[dict[str, JsonValue], AfterValidator(_finite)]  # JsonValue alone takes NaN
Config = TypeVar("Config", bound="DataclassInstance")


class RecordError(ValueError):
    """What a file holds is not the record that it should be; a file that cannot be reached raises another error."""


class Record(BaseModel):
    """What all records have in common: unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def parse(cls, data: bytes | str, origin: str, remedy: str = "") -> Self:
        """Read one record from JSON.

        Raises:
            RecordError: one line with `origin`, the key and what is wrong, and the remedy.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fault = f"{origin}: not a valid {cls.__name__.lower()} ({first_fault(error)})"
            raise RecordError(f"{fault}; {remedy}" if remedy else fault) from None

    def to_json(self) -> bytes:
        """Return one line of canonical JSON: every key, sorted; equal records give equal bytes."""
        tree = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def parse_config(config_type: type[Config], data: bytes | str, obsolete: Collection[str] = ()) -> Config:
    """Read a model's configuration, a dataclass, from JSON.

    Args:
        obsolete: keys of older files, which are ignored.

    Raises:
        ValueError: the key and what is wrong; the caller knows the file.
    """
    tree = from_json(data, allow_inf_nan=False)
    if isinstance(tree, dict):
        if unknown := tree.keys() - {field.name for field in fields(config_type)} - set(obsolete):
            raise ValueError(f"{min(unknown)}: unknown key")
        tree = {key: value for key, value in tree.items() if key not in obsolete}
    try:
        return TypeAdapter(config_type).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """Return what is wrong with the first key that is not right."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"])) or "the file"
    message = " ".join(fault["msg"].removeprefix("Value error, ").split())[:200]
    return f"{where}: {message}"
