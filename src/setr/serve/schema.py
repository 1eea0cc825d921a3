"""Types of the JSON that the server answers with; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from setr.serve.answers import FORMATS
from setr.serve.bodies import FIELD, RAW_TYPES


class ErrorBody(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="A word for programs.")
    message: str = Field(description="One sentence for people: the value, the rule, the fix.")


class Error(BaseModel):
    """The body of every answer but 2xx."""

    error: ErrorBody


class ClassShare(BaseModel):
    """A class that occurs in an image."""

    id: int
    name: str
    color: str = Field(description="#rrggbb")
    share: float = Field(description="Share of the image's pixels, 0 to 1.")


class Segmentation(BaseModel):
    """The answer with format=json."""

    model: str
    width: int
    height: int
    mean_confidence: float = Field(description="Mean probability of the chosen class, 0 to 1.")
    unlabelled: float = Field(
        default=0.0, description="Share of pixels below `min_confidence`; only where that is given."
    )
    classes: list[ClassShare] = Field(description="Classes that occur, largest share first.")
    mask: str = Field(description="Palette PNG in base64; its indices are class ids.")
    confidence: str = Field(description="Grey PNG in base64; 255 is probability 1.")


class AttentionMap(BaseModel):
    """What one patch attends to."""

    model: str
    layer: int = Field(description="Block, from 1; 0 is rollout through all blocks.")
    heads: int = Field(description="Heads that were averaged; 0 for rollout.")
    row: int = Field(description="Of the patch, from 0.")
    column: int
    rows: int = Field(description="Of the patch grid.")
    columns: int
    covers: list[float] = Field(
        description="Height and width in pixels of the image that the grid covers."
    )
    map: str = Field(
        description="Grey PNG (rows x columns) in base64; the brightest 0.5 % are white."
    )


class ClassInfo(BaseModel):
    """A class of a model."""

    id: int
    name: str
    color: str


class ModelCard(BaseModel):
    """One of the models served."""

    name: str
    recipe: str
    parameters: int | None = Field(
        description="Numbers that were learned; null for exported files."
    )
    protocol: str = Field(description="How an image is run.")
    max_pixels: int = Field(description="Largest image this model takes.")
    bands: list[int] | None = Field(
        description="Bands read of an image, from 1; null for red, green and blue."
    )
    layers: int = Field(description="Blocks whose attention can be shown.")
    patch: int = Field(description="Pixels of a patch's side; 0 without patches.")
    metrics: dict[str, Any]
    classes: list[ClassInfo]


class Cards(BaseModel):
    """Everything a client needs to know."""

    version: str
    models: list[ModelCard] = Field(description="The first is the default.")
    max_bytes: int
    max_pixels: int
    deadline: float
    formats: list[str]


class Health(BaseModel):
    """A probe's answer."""

    status: str


_BINARY = {"type": "string", "format": "binary"}

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "An image in any common format, recognised by its content.",
        "content": {
            **{kind: {"schema": _BINARY} for kind in RAW_TYPES},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {FIELD: _BINARY}, "required": [FIELD]},
                "encoding": {FIELD: {"contentType": "image/png, image/jpeg"}},
            },
        },
    }
}
"""The body of a request that carries an image, for the OpenAPI document."""

_SAYS = {
    400: "An empty body, or a form that cannot be read or has other fields.",
    401: "A missing or wrong key.",
    403: "A page of another site, or a name that is not the server's.",
    404: "No such model.",
    406: "Nothing this server can answer in.",
    408: "The body did not arrive in time.",
    413: "Too many bytes, pixels, patches, scores or regions.",
    415: "Not an image by its content type.",
    422: "Not an image by its content, a broken one, or a wrong or unknown parameter.",
    429: "The queue is full; see Retry-After.",
    499: "The client hung up.",
    500: "A fault of the server.",
    503: "Stopping, out of order or out of memory.",
    504: "The deadline passed.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for these error statuses."""
    return {status: {"model": Error, "description": _SAYS[status]} for status in statuses}


def segment_responses() -> dict[int | str, dict[str, Any]]:
    """`responses` of `/v1/segment`: 200 in all formats, and the errors."""
    content: dict[str, Any] = {}
    for form in FORMATS.values():
        schema = {"type": "object"} if form.media_type.endswith("json") else _BINARY
        content.setdefault(form.media_type, {"schema": schema})
    content["application/json"] = {"schema": {"$ref": "#/components/schemas/Segmentation"}}
    says = "; ".join(f"`{name}`: {form.says}" for name, form in FORMATS.items())
    return {
        200: {"description": says, "content": content, "model": Segmentation},
        **IMAGE_ERRORS,
        **errors(406),
    }


IMAGE_ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
"""`responses` that every route with an image shares."""
