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


class ClientIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)


class CombinerOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    alive = serializers.BooleanField()
    active_clients = serializers.IntegerField(help_text="of this project, connected now")
    address = serializers.CharField(allow_blank=True)
    tls_address = serializers.CharField(allow_blank=True)
    labels = serializers.JSONField()
    version = serializers.CharField(allow_blank=True)
    started_at = serializers.DateTimeField(allow_null=True)


class CombinerAddressOut(serializers.Serializer[Any]):
    name = serializers.CharField()
    address = serializers.CharField(allow_blank=True)
    tls_address = serializers.CharField(allow_blank=True)


class ClientSelfOut(serializers.Serializer[Any]):
    client_id = serializers.UUIDField()
    name = serializers.CharField()
    project = serializers.SlugField()
    combiners = CombinerAddressOut(many=True, help_text="best first")
    server_version = serializers.CharField()
