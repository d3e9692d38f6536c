"""The HTTP face of a service: JSON in and out, an OpenAPI schema at `/openapi.json`, Prometheus figures at `/metrics`.

    POST   /v1/adapters                 examples -> id, and an estimate of whether to use it
    GET    /v1/adapters                 ids, the newest first, in pages: ?limit=100&after=ID
    GET    /v1/adapters/ID              what is known of one
    GET    /v1/adapters/ID/download     a zip; ?form=peft for PEFT
    DELETE /v1/adapters/ID
    POST   /v1/predictions              inputs and an id -> predictions, whole or as lines of JSON while they are made
    GET    /v1/model, /healthz, /readyz, /metrics, /openapi.json, /

Wrong input, and what is no JSON, is answered with 422, which names the field or the place; a body that is no UTF-8 or
is nested too deep with 400, an unknown id with 404, too much at once with 429 and a `Retry-After`, a deadline that
passed with 504, a body that takes too long to come with 408, a service that is ending or has failed with 503, a file
that is damaged or may not be read with 500, and a disk or a folder that takes no change, as when it is full, with 507.

>>> app = create_app(Service(hyperflax.load("strings"), "adapters"))
>>> uvicorn.run(app)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

import hyperflax
from hyperflax.errors import HyperflaxError
from hyperflax.serving.downloads import fits_peft, packed
from hyperflax.serving.messages import (
    MOST_LISTED,
    MOST_SECONDS,
    AdapterIds,
    AdapterInfo,
    AdaptRequest,
    ModelInfo,
    Predictions,
    PredictRequest,
    Refusal,
)
from hyperflax.serving.middleware import BodyLimit, CutOff, Figures, Measure, Token, refusal, wrong_request
from hyperflax.serving.page import load_page
from hyperflax.serving.service import Answer, Service
from hyperflax.serving.store import Made, UnknownAdapter
from hyperflax.serving.streams import Deadline, Lines, lines, predictions


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for; how many examples and inputs stands in `messages.py`.

    Attributes:
      body: bytes of a request.
      refine_steps: gradient steps.
      seconds: until an answer is given up, where a request names no deadline; one that it names is no later.
    """

    body: int = 1 << 20
    refine_steps: int = 200
    seconds: float = MOST_SECONDS


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Sequence[str] = ("*",),
    limits: Limits = Limits(),
    grace: Callable[[], float | None] = lambda: None,
) -> FastAPI:
    """Returns the ASGI application; it starts the service and ends it.

    Args:
      service: not yet started.
      token: callers must send `Authorization: Bearer TOKEN`, in UTF-8; except to `/`, `/healthz`, `/readyz` and
        `/openapi.json`, which say nothing that the package does not.
      hosts: names and addresses by which callers may ask for it, against pages of other sites that point their name
        here.
      limits: of one request.
      grace: called when the service is told to end, for the seconds that it gets; with None it takes its time.
    """
    figures = Figures(service)

    def deadline(seconds: float | None = None) -> Deadline:
        if seconds is not None:
            _at_most(seconds, limits.seconds, "seconds")
        return Deadline.within(limits.seconds if seconds is None else seconds)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop, grace())

    app = FastAPI(
        title="hyperflax",
        version=hyperflax.__version__,
        description="Adapters for a frozen T5 from a few examples, and predictions with them.",
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token is not None else [],  # `Token` checks it
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=limits.body)
    app.add_middleware(CutOff)
    app.add_middleware(Token, token=token)
    # An IPv6 address stands in brackets wherever a port may follow.
    names = [f"[{host}]" if ":" in host else host for host in hosts]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    app.add_middleware(Measure, figures=figures)
    app.exception_handler(HyperflaxError)(refusal)
    app.exception_handler(RequestValidationError)(wrong_request)

    @app.post(
        "/v1/adapters",
        status_code=201,
        responses={200: {"model": AdapterInfo}, **refused(400, 404, 408, 413, 422, 429, 500, 503, 504, 507)},
    )
    async def adapt(body: AdaptRequest, response: Response) -> AdapterInfo:
        """Makes an adapter; 200 instead of 201 if equal examples have been given in the same way before.

        404 if it is removed before its estimate is there.
        """
        _at_most(body.refine_steps, limits.refine_steps, "refine_steps")
        _at_most(body.supports, len(body.examples), "supports")
        until = deadline(body.seconds)
        making = service.maker.adapt(
            [(example.input, example.target) for example in body.examples],
            definition=body.definition,
            refine_steps=body.refine_steps,
            supports=body.supports,
            with_estimate=body.estimate,
            metric=body.metric,
        )
        # Given up, it is made all the same: who asks again later finds it.
        made, new = await until.hold(making)
        if not new:
            response.status_code = 200
        return _info(made)

    @app.get("/v1/adapters", responses=refused(404, 422, 500, 504))
    async def adapters(
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="ids of a page")] = 100,
        after: Annotated[str | None, Query(description="`next` of the page before")] = None,
    ) -> AdapterIds:
        """Adapters, the newest first. 404 if `after` is there no more: begin again without it."""
        listing = await deadline().hold(service.maker.listed())
        try:
            page = listing.page(limit, after)
        except KeyError:
            told = f"after: no adapter with the id {after!r}, so that nothing follows it: begin again without it"
            raise UnknownAdapter(told) from None
        return AdapterIds(adapters=page.ids, next=page.next, total=page.total)

    @app.get("/v1/adapters/{adapter}", responses=refused(404, 500))
    async def about(adapter: str) -> AdapterInfo:
        """What is known of an adapter."""
        return await asyncio.to_thread(lambda: _info(service.store.about(adapter), service.unusable(adapter)))

    @app.delete("/v1/adapters/{adapter}", status_code=204, responses=refused(404, 507))
    async def remove(adapter: str) -> None:
        """Forgets an adapter."""
        await service.remove(adapter)

    @app.get(
        "/v1/adapters/{adapter}/download",
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}}, **refused(404, 422, 500, 507)},
    )
    async def download(adapter: str, form: Annotated[Literal["native", "peft"], Query()] = "native") -> Response:
        """A zip: the directory that `hyperflax predict --adapter` takes, or PEFT's."""
        data = await asyncio.to_thread(packed, service, adapter, form)
        headers = {"Content-Disposition": f'attachment; filename="adapter-{adapter[:8]}-{form}.zip"'}
        return Response(data, media_type="application/zip", headers=headers)

    @app.post(
        "/v1/predictions",
        response_model=Predictions,
        responses={
            200: {"content": {"application/x-ndjson": {}}},
            **refused(400, 404, 408, 413, 422, 429, 500, 503, 504),
        },
    )
    async def predict(body: PredictRequest, request: Request) -> Predictions | Lines:
        """Answers every input. With `stream` every line of the answer is one changed prediction, as JSON."""
        options = body.model_dump(include={"temperature", "topk", "topp", "seed"})
        if body.max_length is not None:
            _at_most(body.max_length, service.engine.config.max_length, "max_length")
            options["max_length"] = body.max_length
        until = deadline(body.seconds)
        answers = service.predict(body.inputs, body.adapter, steps=body.stream, **options)
        if body.stream:
            # The first answer comes before the headers: what is refused is refused with its own status.
            try:
                first = await _unless_gone(request, until.hold(anext(answers)))
            except BaseException:
                await answers.aclose()
                raise
            return Lines(lines(first, answers, until, figures), until)
        try:
            last = await _unless_gone(request, until.hold(anext(answers)))
        finally:
            await answers.aclose()
        figures.count(last)
        return Predictions(predictions=predictions(last))

    @app.get("/v1/model", responses=refused())
    async def model() -> ModelInfo:
        """What answers here."""
        parts, config = service.model.parts, service.model.config
        return ModelInfo(
            name=parts.name,
            id=parts.id,
            version=hyperflax.__version__,
            inputs_length=service.engine.config.sources[-1],
            targets_length=service.engine.config.max_length,
            shots=config.episodes.shots,
            adapter_values=config.spec.num_parameters,
            peft=await asyncio.to_thread(fits_peft, config.spec, config.base.num_decoder_layers),
        )

    @app.get("/healthz", include_in_schema=False)
    async def health() -> Response:
        if service.failure is not None:
            return JSONResponse({"status": "failed"}, 500)
        return JSONResponse({"status": "alive"})

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:  # not on the event loop, nor is the page, which is read and hashed once
        return Response(figures.text(), media_type=Figures.media_type)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        body, headers = load_page()
        return Response(body, media_type="text/html", headers=headers)

    return app


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the schema says of answers that are none; 401 is one of every route."""
    return {status: {"model": Refusal, "description": HTTPStatus(status).phrase} for status in (401, *statuses)}


def _at_most(value: float, limit: float, field: str) -> None:
    if value > limit:
        raise HTTPException(422, [{"loc": ["body", field], "msg": f"expected at most {limit}, got {value}"}])


def _info(made: Made, unusable: str | None = None) -> AdapterInfo:
    return AdapterInfo(**vars(made), unusable=unusable)  # `asdict` would copy all that an estimate holds


async def _unless_gone(request: Request, work: Awaitable[list[Answer]]) -> list[Answer]:
    """Gives the work up when the caller hangs up."""
    task = asyncio.ensure_future(work)

    async def hang_up() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.5)
        task.cancel()

    watch = asyncio.ensure_future(hang_up())
    try:
        return await task
    except asyncio.CancelledError:
        if not watch.done():  # it is the service that ends
            raise
        raise HTTPException(499, "the caller hung up") from None
    finally:
        watch.cancel()
