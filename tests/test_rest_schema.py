"""The API describes itself, completely, and can be looked at in a browser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from projects.models import Project, User
from tests.cast import ApiFor


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    from drf_spectacular.generators import SchemaGenerator

    made: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    return made


def routes(resolver: URLResolver, prefix: str = "") -> list[str]:
    found = []
    for entry in resolver.url_patterns:
        here = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            found += routes(entry, here)
        elif isinstance(entry, URLPattern):
            found.append(here)
    return found


def test_the_document_is_valid_and_complete_without_a_warning(tmp_path: Any) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yaml"))


def test_every_address_of_the_api_is_in_the_document(document: dict[str, Any]) -> None:
    """But for those that only the published clients of others know: they are patterns, for slashes vary there."""
    ours = {
        "/" + re.sub(r"<(?:\w+:)?(\w+)>", "{}", route)
        for route in routes(get_resolver())
        if route.startswith("api/v1/") and "^" not in route
    }
    assert ours == {re.sub(r"\{\w+\}", "{}", path) for path in document["paths"]}


def test_every_operation_says_its_room_and_how_it_fails(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["tags"] != ["api"] and len(operation["tags"]) == 1, where
            assert operation["responses"]["default"]["content"]["application/problem+json"], where
            if method == "post" and "201" in operation["responses"]:
                assert "Idempotency-Key" in [each["name"] for each in operation["parameters"]], where


def test_every_list_pages_by_key(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        names = [each["name"] for each in operations.get("get", {}).get("parameters", [])]
        assert ("cursor" in names) == ("limit" in names), path


def test_the_document_is_served_to_everybody() -> None:
    answer = Client().get("/api/schema/", headers={"accept": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_the_docs_page_holds_no_inline_script_or_style() -> None:
    answer = Client().get("/api/docs/")
    html = answer.content.decode()
    assert answer.status_code == 200
    assert "unsafe" not in answer["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)
    script = re.findall(r'<script src="([^"]+)"', html)[-1]
    served = Client().get(script)
    assert served["Content-Type"].startswith("application/javascript")
    assert "/api/schema/" in served.content.decode()


def test_the_browsable_page_reads_well_under_the_strict_policy(
    project: Project, owner: User, api: ApiFor
) -> None:
    answer = api(owner).get("/api/v1/projects/", HTTP_ACCEPT="text/html")
    html = answer.content.decode()
    assert project.name in html
    scripts = re.findall(r"<script(?![^>]*\bsrc=)([^>]*)>", html)
    assert scripts == [' type="application/json" id="drf_csrf"']  # data, not code
    assert "<style" not in html and not re.search(r"\son\w+=", html)
