"""Refuses parameters that a route does not have: a typing error must not change the answer."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from setr.errors import nearest
from setr.serve.limits import Refusal


def known_parameters(request: Request) -> None:
    """A dependency of routes that take parameters.

    Raises:
        Refusal: 422, a parameter that the route does not have, or one that is given twice.
    """
    route: Any = request.scope["route"]
    known = [field.alias for field in route.dependant.query_params]
    seen = set[str]()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
            raise Refusal(422, "parameter", f"{name:.80}: no such parameter; {hint}")
        if name in seen:
            raise Refusal(422, "parameter", f"{name}: is given twice; give it once")
        seen.add(name)
