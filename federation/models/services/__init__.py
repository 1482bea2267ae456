"""Writing packages, models and measurements; split by noun."""

from federation.models.services.defaults import (
    bring_model,
    bring_package,
    defaults_of,
    set_active_model,
    set_active_package,
    set_helper,
)
from federation.models.services.measured import (
    LoggedMetric,
    TrainingReport,
    record_logged_metrics,
    record_training_metadata,
    record_validation,
)
from federation.models.services.packages import create_package, delete_package
from federation.models.services.seeds import create_seed_model, delete_seed_model
from federation.models.services.trail import add_round_model

__all__ = [
    "LoggedMetric",
    "TrainingReport",
    "add_round_model",
    "bring_model",
    "bring_package",
    "create_package",
    "create_seed_model",
    "defaults_of",
    "delete_package",
    "delete_seed_model",
    "record_logged_metrics",
    "record_training_metadata",
    "record_validation",
    "set_active_model",
    "set_active_package",
    "set_helper",
]
