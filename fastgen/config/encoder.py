"""Keys of an encoder of observations: what makes Z of raw columns, before anything is trained."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from .base import Config

__all__ = ["EncoderConfig"]


class EncoderConfig(Config):
    """A frozen network that makes Z of raw observations, images among them."""

    factory: str = Field(
        description="package.module:callable that returns a module: it is called with the rows "
        "(B, ...) of the columns, a Tensor or a dict by name, and answers (B, d)"
    )
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description=".safetensors that its weights are loaded from"
    )
    columns: list[str] = Field(
        min_length=1, description="columns of the data set, as they are, in place of observations"
    )
    batch_size: int = Field(default=256, ge=1, description="rows that are encoded and kept at once")
    cache: str | None = Field(
        default=None, description="folder of what was encoded; null = beside the data"
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _one(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names
