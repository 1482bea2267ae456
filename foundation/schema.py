"""What the OpenAPI document says of every operation alike: problems, and the key for repeated requests."""

from __future__ import annotations

from typing import Any

PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {
            "type": "string",
            "description": "One sentence: what is wrong, where, what would be right.",
        },
        "code": {"type": "string", "description": "A stable word for programs."},
        "errors": {"type": "object", "additionalProperties": True, "description": "By field."},
    },
    "required": ["type", "title", "status", "detail", "code"],
    "additionalProperties": True,
}
IDEMPOTENCY_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "Repeating the request with the same key within 24 hours creates nothing new.",
}


def say_what_holds_everywhere(
    result: dict[str, Any], generator: Any, request: Any, public: bool
) -> dict[str, Any]:
    """A post-processing hook of drf-spectacular."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    problem = {
        "description": "A problem.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for operations in result["paths"].values():
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "patch", "delete"):
                continue
            operation["responses"].setdefault("default", problem)
            if method == "post" and "201" in operation["responses"]:
                operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    return result
