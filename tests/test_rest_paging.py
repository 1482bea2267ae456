"""Lists page by key: complete, in order, and steady while rows come and go."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest

from projects.models import Membership, Project, User
from tests.cast import ApiFor

PROJECTS = "/api/v1/projects/"


@pytest.fixture
def seven(owner: User) -> list[Project]:
    made = [Project.objects.create(slug=f"p-{number}", name=f"P {number}") for number in range(7)]
    for row in made:
        Membership.objects.create(project=row, user=owner, role="owner")
    return made


def walk(http: Any, url: str | None, key: str = "next") -> list[list[str]]:
    pages = []
    while url:
        page = http.get(url).json()
        pages.append([row["name"] for row in page["results"]])
        url = page[key]
    return pages


def flat(pages: list[list[str]]) -> list[str]:
    return [name for page in pages for name in page]


def test_a_list_is_walked_forth_and_back(seven: list[Project], owner: User, api: ApiFor) -> None:
    http = api(owner)
    newest_first = [row.name for row in reversed(seven)]
    pages = walk(http, f"{PROJECTS}?limit=3")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert flat(pages) == newest_first
    second = http.get(f"{PROJECTS}?limit=3").json()["next"]
    assert [
        row["name"] for row in http.get(http.get(second).json()["previous"]).json()["results"]
    ] == newest_first[:3]


def test_what_comes_and_goes_meanwhile_shows_no_row_twice_and_hides_none(
    seven: list[Project], owner: User, api: ApiFor
) -> None:
    http = api(owner)
    first = http.get(f"{PROJECTS}?limit=3").json()
    newer = Project.objects.create(slug="newer", name="newer")
    Membership.objects.create(project=newer, user=owner, role="owner")
    seven[4].delete()  # the very row that the cursor names
    rest = walk(http, first["next"])
    assert flat(rest) == ["P 3", "P 2", "P 1", "P 0"]


def test_a_filter_stays_while_paging(seven: list[Project], owner: User, api: ApiFor) -> None:
    assert walk(api(owner), f"{PROJECTS}?limit=1&name__icontains=p%203") == [["P 3"]]


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        "%00",
        "ä",
        base64.b64encode(b"p=not-a-uuid").decode(),
        base64.b64encode(b"p=%00").decode(),
        base64.b64encode(b"o=-1").decode(),
        base64.b64encode(b"o=x&r=y").decode(),
        base64.b64encode(b"\xff\xff").decode(),
    ],
)
@pytest.mark.parametrize("route", [PROJECTS, "members", "/api/v1/tokens/"])
def test_a_tampered_cursor_is_refused_with_a_sentence(
    cursor: str, route: str, project: Project, owner: User, api: ApiFor
) -> None:
    url = f"{PROJECTS}{project.slug}/members/" if route == "members" else route
    refused = api(owner).get(f"{url}?cursor={quote(cursor)}")
    assert refused.status_code == 400
    assert refused.json()["code"] == "invalid" and refused.json()["field"] == "cursor"


@pytest.mark.parametrize("limit", ["0", "-1", "many", "", "٣"])
def test_a_limit_that_is_no_number_of_rows_is_refused(limit: str, owner: User, api: ApiFor) -> None:
    refused = api(owner).get(PROJECTS, {"limit": limit})
    assert (refused.status_code, refused.json()["field"]) == (400, "limit")


def test_a_huge_limit_is_capped(seven: list[Project], owner: User, api: ApiFor) -> None:
    assert len(api(owner).get(PROJECTS, {"limit": "9" * 30}).json()["results"]) == 7


def test_a_filter_with_a_value_that_cannot_be_is_refused(owner: User, api: ApiFor) -> None:
    refused = api(owner).get(PROJECTS, {"template": "chess"})
    assert refused.status_code == 400 and "template" in refused.json()["errors"]
