"""Pages whose examples run on an OpenCL device are skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest

from backends.opencl import OpenCL
from ops.errors import BackendError

NEED_OPENCL = {"kernels.md", "opencl.md"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    pages = [item for item in items if item.path.parent.name == "docs" and item.path.name in NEED_OPENCL]
    if not pages:
        return
    try:
        OpenCL.devices()
    except BackendError as error:
        for page in pages:
            page.add_marker(pytest.mark.skip(reason=str(error)))  # the backend's own sentence: what is missing, what to install
