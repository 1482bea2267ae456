"""How clients and combiners look in JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class ClientOut(serializers.Serializer[Any]):
    """Of a `ClientState`."""

    id = serializers.UUIDField(source="client.pk")
    name = serializers.CharField(source="client.name")
    online = serializers.BooleanField()
    since = serializers.DateTimeField(
        allow_null=True, help_text="online since, or last heard from; null when never"
    )
    combiner = serializers.CharField(allow_null=True, help_text="the one it is connected to")
    doing = serializers.CharField(allow_blank=True, help_text="such as: training round 3 of Digits")
    dialect = serializers.CharField(source="client.dialect", allow_blank=True)
    version = serializers.CharField(source="client.version", allow_blank=True)
    attributes = serializers.JSONField(source="client.attributes")
    pin = serializers.JSONField(source="client.pin", help_text="labels that its combiner must have")
    last_seen_at = serializers.DateTimeField(source="client.last_seen_at", allow_null=True)
    created_at = serializers.DateTimeField(source="client.created_at")


class ConfigOut(serializers.Serializer[Any]):
    """The content of client.yaml."""

    name = serializers.CharField()
    client_id = serializers.CharField()
    api_url = serializers.CharField()
    token = serializers.CharField(help_text="in this answer only")
    combiner = serializers.CharField(required=False, help_text="host:port, plain text")
    combiner_tls = serializers.CharField(required=False, help_text="host:port, TLS")
    ca_cert = serializers.CharField(required=False)


class ClientMadeOut(ClientOut):
    config = ConfigOut()
    config_yaml = serializers.CharField(help_text="the same, ready to be saved as client.yaml")


PIN_HELP = 'labels that its combiner must have, such as {"region": "eu"}; {}: any combiner'


class ClientIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)
    pin = serializers.JSONField(required=False, help_text=PIN_HELP)


class ClientChange(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120, required=False)
    pin = serializers.JSONField(required=False, help_text=PIN_HELP)


class RoundShareOut(serializers.Serializer[Any]):
    """A combiner's part of one open round."""

    session = serializers.UUIDField(source="session_id")
    session_name = serializers.CharField()
    round = serializers.IntegerField(source="number")
    asked = serializers.IntegerField(help_text="clients asked through it")
    accepted = serializers.IntegerField(help_text="their updates that it has accepted")
    weight_percent = serializers.FloatField(
        allow_null=True, help_text="of the weight of all updates accepted so far; null before the first"
    )
    state = serializers.CharField(
        allow_blank=True, help_text="open, closing, finished or abandoned; empty before the first update"
    )


class CombinerOut(serializers.Serializer[Any]):
    """Of a `CombinerState`."""

    id = serializers.UUIDField(source="combiner.pk")
    name = serializers.CharField(source="combiner.name")
    alive = serializers.BooleanField()
    state = serializers.CharField(help_text="up, draining, stopped or silent")
    active_clients = serializers.IntegerField(help_text="of this project, connected now")
    address = serializers.CharField(source="combiner.address", allow_blank=True)
    tls_address = serializers.CharField(source="combiner.tls_address", allow_blank=True)
    labels = serializers.JSONField(source="combiner.labels")
    version = serializers.CharField(source="combiner.version", allow_blank=True)
    started_at = serializers.DateTimeField(source="combiner.started_at", allow_null=True)
    load = serializers.DictField(
        child=serializers.FloatField(),
        help_text="of its process, each 5 s: cpu_percent of one core, rss_bytes, bytes_in_s and bytes_out_s of models, "
        "uploads in flight, queue of tasks and updates in line; empty while it is not alive",
    )
    shares = RoundShareOut(many=True, help_text="its part of this project's open rounds")


class DrainingOut(serializers.Serializer[Any]):
    """Of a `placement.DrainingState`."""

    name = serializers.CharField()
    draining = serializers.BooleanField()
    drained = serializers.BooleanField(help_text="draining, and nothing is left: it may be stopped")
    clients = serializers.IntegerField(
        source="left.clients", help_text="connected, that go elsewhere when drained"
    )
    staying = serializers.IntegerField(
        source="left.staying", help_text="connected, that know no other combiner (FEDn's and Scaleout's)"
    )
    shares = serializers.IntegerField(
        source="left.shares", help_text="parts of open rounds that it has to finish"
    )


class CombinerAddressOut(serializers.Serializer[Any]):
    name = serializers.CharField()
    address = serializers.CharField(allow_blank=True)
    tls_address = serializers.CharField(allow_blank=True)


class ClientSelfOut(serializers.Serializer[Any]):
    client_id = serializers.UUIDField()
    name = serializers.CharField()
    project = serializers.SlugField()
    combiners = CombinerAddressOut(many=True, help_text="best first; none: it has to wait")
    pin = serializers.JSONField(help_text="labels that its combiner must have")
    server_version = serializers.CharField()
