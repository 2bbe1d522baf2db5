"""What endpoints are given."""

from typing import Annotated

from fastapi import Depends, Request

from app.bootstrap import Resources


def resources(request: Request) -> Resources:
    found: Resources = request.app.state.resources
    return found


Deps = Annotated[Resources, Depends(resources)]
