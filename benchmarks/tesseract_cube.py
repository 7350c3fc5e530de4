"""The cube of `operator.py` as a Tesseract, for tesseract-torch in process."""

from typing import Any

from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64


class InputSchema(BaseModel):
    """What it takes."""

    x: Differentiable[Array[(None, None), Float64]]


class OutputSchema(BaseModel):
    """What it gives."""

    y: Differentiable[Array[(None, None), Float64]]


def apply(inputs: InputSchema) -> OutputSchema:
    """Return the cube."""
    return OutputSchema(y=inputs.x * inputs.x * inputs.x)


def vector_jacobian_product(
    inputs: InputSchema,
    vjp_inputs: set[str],
    vjp_outputs: set[str],
    cotangent_vector: dict[str, Any],
) -> dict[str, Any]:
    """Return the cotangent of x."""
    return {"x": 3 * inputs.x * inputs.x * cotangent_vector["y"]}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """Return the shape of y."""
    return {"y": abstract_inputs.x}
