"""How packages, models and measurements look in JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from federation.models.models import ComputePackage, Metric, Model, Validation


class PackageOut(serializers.ModelSerializer[ComputePackage]):
    created_by = serializers.CharField(source="created_by.username", default=None)
    entry_points = serializers.DictField(child=serializers.CharField(), help_text="name to shell command")

    class Meta:
        model = ComputePackage
        fields = [
            "id",
            "name",
            "description",
            "file_name",
            "sha256",
            "size_bytes",
            "project_file",
            "entry_points",
            "python_env",
            "created_by",
            "created_at",
        ]


class PackageIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=2000, required=False, allow_blank=True, default="")
    file = serializers.FileField(help_text=".tgz, .tar.gz or .tar.bz2", allow_empty_file=True)


class SeedModelIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)
    file = serializers.FileField(help_text=".npz or .safetensors", allow_empty_file=True)


class ModelOut(serializers.ModelSerializer[Model]):
    session_name = serializers.CharField(source="session.name", default=None)
    round = serializers.IntegerField(source="round_number", allow_null=True)
    tensors = serializers.SerializerMethodField()
    metrics = serializers.SerializerMethodField(help_text="weighted means over the clients that validated it")

    class Meta:
        model = Model
        fields = [
            "id",
            "kind",
            "name",
            "parent",
            "session",
            "session_name",
            "round",
            "sha256",
            "size_bytes",
            "tensors",
            "metrics",
            "metadata",
            "created_at",
        ]

    def get_tensors(self, row: Model) -> int:
        return len(row.layout)

    def get_metrics(self, row: Model) -> dict[str, float]:
        means: dict[str, float] = self.context.get("means", {}).get(row.pk, {})
        return means


class TensorOut(serializers.Serializer[Any]):
    name = serializers.CharField()
    dtype = serializers.CharField()
    shape = serializers.ListField(child=serializers.IntegerField())


class ModelDetailOut(ModelOut):
    layout = TensorOut(many=True)

    class Meta(ModelOut.Meta):
        fields = [*ModelOut.Meta.fields, "layout"]


class AncestorOut(serializers.ModelSerializer[Model]):
    session_name = serializers.CharField(source="session.name", default=None)
    round = serializers.IntegerField(source="round_number", allow_null=True)

    class Meta:
        model = Model
        fields = ["id", "kind", "name", "parent", "session", "session_name", "round", "sha256", "created_at"]


class LineageOut(serializers.Serializer[Any]):
    """From the model back to its seed; always one page."""

    next = serializers.CharField(allow_null=True, default=None)
    previous = serializers.CharField(allow_null=True, default=None)
    results = AncestorOut(many=True)


class ValidationOut(serializers.ModelSerializer[Validation]):
    round = serializers.IntegerField(source="round_number", allow_null=True)

    class Meta:
        model = Validation
        fields = ["id", "model", "client", "client_name", "session", "round", "data", "created_at"]


class MetricOut(serializers.ModelSerializer[Metric]):
    round = serializers.IntegerField(source="round_number", allow_null=True)

    class Meta:
        model = Metric
        fields = [
            "id",
            "source",
            "name",
            "value",
            "weight",
            "step",
            "model",
            "session",
            "client",
            "round",
            "created_at",
        ]
