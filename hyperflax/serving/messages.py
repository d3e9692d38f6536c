"""What requests and answers of the service hold: the OpenAPI schema is made of these.

A request is strict: an unknown field and a number in place of a text are refused, and named. Of a list the first wrong
item is named, and many unknown fields are not: a body of the largest size may have a hundred thousand of either, and
the event loop would stand still over them. For the same reason a list that is too long is not looked at to its end.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, StrictStr, ValidationInfo, model_validator

from hyperflax.data.jsonl import encodable
from hyperflax.serving.engine import MAX_TEMPERATURE, MAX_TOPK

MOST_ITEMS = 256  # examples or inputs of a request
MOST_LISTED = 1000  # ids of a page
MOST_SECONDS = 300  # until an answer is given up
MOST_FIELDS = 16  # of an object that are looked at one by one


def _encodable(text: str, info: ValidationInfo) -> str:
    return encodable(text, str(info.field_name), "request")


Text = Annotated[StrictStr, AfterValidator(_encodable)]
"""JSON can hold half of a surrogate pair; no vocabulary has tokens for it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise ValueError(f"expected no fields but {', '.join(cls.model_fields)}, got {len(given)}")
        return given


class ExamplePair(_Strict):
    """What the task does with one input."""

    input: Text
    target: Text


class AdaptRequest(_Strict):
    """Examples of one task."""

    examples: Annotated[list[ExamplePair], FailFast()] = Field(min_length=1, max_length=MOST_ITEMS)
    definition: Text | None = Field(None, description="the task's instruction, for models that read one")
    refine_steps: int = Field(0, ge=0, description="gradient steps on the examples after the forward pass")
    supports: int = Field(1, ge=1, description="read the examples in so many parts")
    estimate: bool = Field(True, description="leave some examples out and ask them; needs two, and takes longer")
    metric: Text = Field("exact_match", description="of the estimate; or rouge_l ...")
    seconds: float | None = Field(
        None, gt=0, description=f"deadline of the answer, at most {MOST_SECONDS}; the adapter is made all the same"
    )


class AdapterInfo(BaseModel):
    """What is known of an adapter."""

    id: str
    examples: int
    definition: str | None
    refine_steps: int
    supports: int
    warnings: list[str] = Field(description="what of the examples and the definition was not read, or cut")
    created: float = Field(description="seconds since 1970")
    estimate: dict[str, Any] | None = Field(description="scores on examples left out, and an advice")
    no_estimate: str | None = Field(description="why there can be none: an adapter made for it diverged; or null")
    unusable: str | None = Field(
        None, description="why this service cannot use it: another one made it; null if it can"
    )


class AdapterIds(BaseModel):
    """One page of the ids of all adapters, the newest first."""

    adapters: list[str]
    next: str | None = Field(description="`after` of the next page; null on the last one")
    total: int = Field(description="adapters on all pages")


class PredictRequest(_Strict):
    """Inputs for one adapter, or for the bare model."""

    inputs: Annotated[list[Text], FailFast()] = Field(min_length=1, max_length=MOST_ITEMS)
    adapter: Text | None = Field(None, description="id; without one the base model answers bare")
    max_length: int | None = Field(None, ge=1, description="tokens of an answer at most")
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE, description="0 is greedy")
    topk: int = Field(0, ge=0, le=MAX_TOPK, description="0 is no limit")
    topp: float = Field(0.0, ge=0, le=1, description="0 is no limit")
    seed: int = Field(0, ge=0, lt=2**32)
    stream: bool = Field(False, description="answer with lines of JSON while the predictions are made")
    seconds: float | None = Field(None, gt=0, description=f"deadline, at most {MOST_SECONDS}")


class Prediction(BaseModel):
    """One input's answer; in a stream, so far."""

    index: int
    text: str
    done: bool
    log_prob: float


class Predictions(BaseModel):
    """One answer per input, in their order."""

    predictions: list[Prediction]


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    loc: list[str | int]
    msg: str


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str | list[FieldProblem]


class ModelInfo(BaseModel):
    """What answers here."""

    name: str
    id: str
    version: str
    inputs_length: int = Field(description="tokens of an input at most")
    targets_length: int = Field(description="tokens of an answer at most")
    shots: int = Field(description="examples that training showed at once")
    adapter_values: int
    peft: bool = Field(description="whether PEFT can express its adapters, for `?form=peft`")
