"""What endpoints are given."""

from typing import Annotated

from fastapi import Depends, Request

from app.bootstrap import ApiResources


def resources(request: Request) -> ApiResources:
    found: ApiResources = request.app.state.resources
    return found


Deps = Annotated[ApiResources, Depends(resources)]
