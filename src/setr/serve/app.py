"""The routes.

POST /v1/segment     an image in, a mask or another format out
POST /v1/attention   an image and a point in, what its patch attends to out
GET  /v1/models      what is served, and its limits
GET  /               the page        GET /docs, /openapi.json   the interface
GET  /healthz        able to work    GET /readyz                taking requests
GET  /metrics        Prometheus
"""

# no postponed annotations here: FastAPI reads those of functions that use local limits
import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from starlette.responses import Response

from setr import __version__
from setr.colours import hex_colour
from setr.ensemble import Ensemble
from setr.explain import saturated
from setr.exporting.runtime import ExportedModel
from setr.images import encode_png
from setr.opening import Trained
from setr.prediction.kinds import OPACITY
from setr.serve.answers import FORMATS, FormatName, Options, choose, encode
from setr.serve.faults import handle_errors
from setr.serve.gate import Gate, Keys
from setr.serve.hosts import Hosts
from setr.serve.limits import Limits, Refusal
from setr.serve.models import Attention, Models, Question, num_layers, patch_size
from setr.serve.pages import add_pages
from setr.serve.parameters import known_parameters
from setr.serve.schema import (
    IMAGE_BODY,
    IMAGE_ERRORS,
    AttentionMap,
    Cards,
    ClassInfo,
    Health,
    ModelCard,
    errors,
    segment_responses,
)
from setr.serve.service import Service

T = TypeVar("T")

KNOWN = [Depends(known_parameters)]
ModelName = Annotated[str | None, Query(description="A name of /v1/models; the first if left out.")]


def create_app(
    models: Models,
    limits: Limits,
    keys: Keys | None = None,
    hosts: Hosts | None = None,
    *,
    log: bool = True,
) -> Gate:
    """The ASGI application.

    Args:
        keys: API keys; without any, every request is let in.
        hosts: names the server answers to; all if left out.
        log: write the access log.

    Returns:
        The app behind its gate; its attribute `service` holds what the routes share.
    """
    keys = keys or Keys()
    service = Service(models, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="setr",
        version=__version__,
        summary="Semantic segmentation over HTTP",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's own Host header
        lifespan=lifespan,
    )
    handle_errors(app)
    add_pages(app)
    _add_probes(app, service)
    _add_models(app, service)
    _add_segment(app, service)
    _add_attention(app, service)
    _declare_keys(app, keys)
    return Gate(app, service, keys, hosts or Hosts(), log=log)


def _add_segment(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/segment",
        dependencies=KNOWN,
        response_class=Response,
        responses=segment_responses(),
        openapi_extra=IMAGE_BODY,
        summary="Segment an image",
        tags=["segment"],
    )
    async def segment(
        request: Request,
        model: ModelName = None,
        format: Annotated[
            FormatName | None, Query(description="Of the answer; else `Accept` decides, else mask.")
        ] = None,
        opacity: Annotated[float, Query(ge=0, le=1, description="Of the overlay.")] = OPACITY,
        tolerance: Annotated[
            float,
            Query(ge=0, le=1000, description="Pixels that polygons may be off, for fewer corners."),
        ] = 0.0,
        min_pixels: Annotated[
            int, Query(ge=1, description="Polygons of smaller regions are left out.")
        ] = 1,
        min_confidence: Annotated[
            float, Query(ge=0, le=1, description="Pixels of less probable classes are unlabelled.")
        ] = 0.0,
        deadline: Annotated[
            float, Query(gt=0, le=service.limits.deadline, description="Seconds to wait.")
        ] = service.limits.deadline,
    ) -> Response:
        name = choose(format, request.headers.get("accept", ""))
        options = Options(opacity, tolerance, min_pixels, min_confidence)
        content = await service.compute(
            request,
            model,
            "scores" if name == "scores" else "segment",
            deadline,
            lambda image: image,
            lambda served, result: encode(name, served, result, options),
        )
        request.state.until_sent.enter_context(service.admission.unsent.hold(len(content)))
        note = request.state.note
        return Response(
            content,
            media_type=FORMATS[name].media_type,
            headers={
                "Content-Disposition": f'inline; filename="image{FORMATS[name].ending}"',
                "Server-Timing": ", ".join(
                    f"{part};dur={note[f'{part}_ms']}" for part in ("queue", "model", "encode")
                ),
            },
        )


def _add_attention(app: FastAPI, service: Service) -> None:
    deepest = max([1, *(num_layers(p) for p in service.models.by_name.values())])

    @app.post(
        "/v1/attention",
        dependencies=KNOWN,
        responses=IMAGE_ERRORS,
        openapi_extra=IMAGE_BODY,
        summary="What the patch at a point attends to",
        tags=["segment"],
    )
    async def attention(
        request: Request,
        x: Annotated[float, Query(ge=0, le=1, description="From the left, as a fraction.")],
        y: Annotated[float, Query(ge=0, le=1, description="From the top, as a fraction.")],
        model: ModelName = None,
        layer: Annotated[
            int | None,
            Query(
                ge=0, le=deepest, description="Block from 1; 0 for rollout; the last if left out."
            ),
        ] = None,
        deadline: Annotated[float, Query(gt=0, le=service.limits.deadline)] = (
            service.limits.deadline
        ),
    ) -> AttentionMap:
        _, predictor = service.models[model]
        last = num_layers(predictor)
        if not last:
            message = "this model is no transformer: it has no attention"
            if isinstance(predictor.model, ExportedModel | Ensemble):
                message = (
                    "an ensemble or a file of setr export gives no attention; serve one model's "
                    "directory"
                )
            raise Refusal(422, "no_attention", message)
        chosen = last if layer is None else layer
        return await service.compute(
            request,
            model,
            "attention" if chosen else "rollout",
            deadline,
            lambda image: Question(image, x, y, chosen),
            lambda name, answer: _attention_map(name, chosen, answer),
        )


def _attention_map(name: str, layer: int, answer: Attention) -> AttentionMap:
    rows, columns = answer.values.shape
    levels = np.rint(np.clip(saturated(answer.values), 0, 1) * 255).astype(np.uint8)
    return AttentionMap(
        model=name,
        layer=layer,
        heads=answer.heads,
        row=answer.cell[0],
        column=answer.cell[1],
        rows=rows,
        columns=columns,
        covers=list(answer.covers),
        map=base64.b64encode(encode_png(levels)).decode(),
    )


def _parameters(model: Trained) -> int | None:
    """The number of parameters; None for an exported file, which does not tell."""
    if isinstance(model, ExportedModel):
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _add_models(app: FastAPI, service: Service) -> None:
    def card(name: str) -> ModelCard:
        predictor = service.models.by_name[name]
        labels, info = predictor.info.labels, predictor.info
        return ModelCard(
            name=name,
            recipe=info.recipe,
            parameters=_parameters(predictor.model),
            protocol=info.protocol.describe(),
            max_pixels=service.models.max_pixels(name),
            bands=None if predictor.bands is None else list(predictor.bands.numbers),
            layers=num_layers(predictor),
            patch=patch_size(predictor),
            metrics=info.metrics,
            classes=[
                ClassInfo(id=i, name=label, color=hex_colour(colour))
                for i, (label, colour) in enumerate(
                    zip(labels.classes, labels.colours, strict=True)
                )
            ],
        )

    cards = Cards(
        version=__version__,
        models=[card(name) for name in service.models.by_name],
        max_bytes=service.limits.max_bytes,
        max_pixels=service.limits.max_pixels,
        deadline=service.limits.deadline,
        formats=list(FORMATS),
    )

    @app.get("/v1/models", responses=errors(401, 403), summary="What is served", tags=["segment"])
    async def models() -> Cards:
        return cards


def _add_probes(app: FastAPI, service: Service) -> None:
    def check() -> None:
        trouble = service.trouble()
        if trouble is not None:
            raise Refusal(503, "unhealthy", f"{trouble}; start this server anew")

    @app.get("/healthz", responses=errors(403, 503), summary="Able to work", tags=["operate"])
    async def healthz() -> Health:
        check()
        return Health(status="ok")

    @app.get("/readyz", responses=errors(403, 503), summary="Taking requests", tags=["operate"])
    async def readyz() -> Health:
        check()
        if service.draining:
            raise Refusal(503, "draining", "this server is stopping")
        return Health(status="ready")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **errors(401, 403),
        },
        summary="Figures for Prometheus",
        tags=["operate"],
    )
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")


def _declare_keys(app: FastAPI, keys: Keys) -> None:
    """Write the keys into the OpenAPI document."""
    document = app.openapi()
    guarded = [operations for path, operations in document["paths"].items() if keys.guard(path)]
    for operations in guarded:
        for operation in operations.values():
            operation["security"] = [{"bearer": []}, {"header": []}]
    if guarded:
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
