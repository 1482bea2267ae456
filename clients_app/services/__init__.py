"""Writes of clients, split by noun."""

from clients_app.services.combiners import check_operator, drain_combiner, undrain_combiner
from clients_app.services.devices import (
    change_client,
    checked_name,
    delete_client,
    enrol_client,
    name_combiner_host,
    new_config,
    register_client,
    rename_client,
    set_attribute,
)
from clients_app.services.pins import checked_pin, pin_client
from clients_app.services.registration import register_device

__all__ = [
    "change_client",
    "check_operator",
    "checked_name",
    "checked_pin",
    "delete_client",
    "drain_combiner",
    "enrol_client",
    "name_combiner_host",
    "new_config",
    "pin_client",
    "register_client",
    "register_device",
    "rename_client",
    "set_attribute",
    "undrain_combiner",
]
