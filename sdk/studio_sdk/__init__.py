"""The client side of Studio.

Everything is imported on first use: a training script does not pay for gRPC, nor the `studio` command for numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import VERSION

if TYPE_CHECKING:
    from .api import StudioApi
    from .client.config import ClientConfig
    from .client.federated import FederatedClient
    from .errors import StudioApiError
    from .parameters import (
        load_parameters,
        load_settings,
        log_metric,
        save_metadata,
        save_metrics,
        save_parameters,
    )

_PLACES = {
    "StudioApi": "api",
    "StudioApiError": "errors",
    "ClientConfig": "client.config",
    "FederatedClient": "client.federated",
    "load_parameters": "parameters",
    "load_settings": "parameters",
    "log_metric": "parameters",
    "save_metadata": "parameters",
    "save_metrics": "parameters",
    "save_parameters": "parameters",
}

__all__ = [
    "ClientConfig",
    "FederatedClient",
    "StudioApi",
    "StudioApiError",
    "load_parameters",
    "load_settings",
    "log_metric",
    "save_metadata",
    "save_metrics",
    "save_parameters",
]

__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
