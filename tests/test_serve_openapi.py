"""schemathesis: requests drawn from the OpenAPI document, answers checked against it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("schemathesis", reason="needs schemathesis (extra test)")
import schemathesis

from setr.data import scenes
from setr.images import encode_png
from setr.serve.bodies import RAW_TYPES
from setr.serve.limits import Limits
from setr.serve.models import Models
from tests.serving import running, save_models

KEY = "key-of-the-test"
PHOTO = encode_png(scenes.draw("openapi", 0, size=32)[0])

for kind in RAW_TYPES:  # bytes at random are no image; the document cannot say what is one
    schemathesis.openapi.media_type(kind, st.just(PHOTO))


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("models")
    limits = Limits(deadline=30.0, drain=5.0)
    models = Models(save_models(folder), limits, device="cpu", precision="fp32")
    with running(models, limits, keys=(KEY,)) as (url, _):
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_the_server_keeps_what_the_document_says(document, mode):
    """Valid and invalid requests: documented statuses, types, schemas; no fault; no way in."""
    tested = []
    for found in document.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=10, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                if float(case.query["deadline"]) > 0:
                    del case.query["deadline"]  # a short one rightly ends with 504
            case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

        try:
            ask()
        except Unsatisfiable:  # an operation without parameters cannot be asked wrongly
            continue
        tested.append(operation.label)
    assert "POST /v1/segment" in tested
    assert len(tested) >= 2
