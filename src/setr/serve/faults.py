"""Every way a request can fail, answered with the same JSON."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from setr.serve.bodies import Gone
from setr.serve.gate import refuse
from setr.serve.limits import Refusal

_ROUTES = {
    404: "no such route; POST /v1/segment takes an image, /docs lists the others",
    405: "not a method of this route; /docs lists them",
}
"""What is said of an address that the server does not have, by status."""


def handle_errors(app: FastAPI) -> None:
    """Add the handlers."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refuse(request.scope, refusal)

    @app.exception_handler(Gone)
    async def gone(request: Request, _: Gone) -> Response:
        return refuse(request.scope, Refusal(499, "gone", "the client hung up"))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refuse(request.scope, Refusal(422, "parameter", f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        said = _ROUTES.get(error.status_code, str(error.detail))
        answer = refuse(request.scope, Refusal(error.status_code, "http", said))
        for key, value in (error.headers or {}).items():
            answer.headers[key] = value
        return answer

    @app.exception_handler(Exception)
    async def fault(request: Request, _: Exception) -> Response:
        return refuse(
            request.scope, Refusal(500, "internal", "a fault of this server; see its log")
        )
