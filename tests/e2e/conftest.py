"""A Chromium, a web process, and people who are logged in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from projects.models import Project, User
from tests.live_web import Web, cookie_of
from tests.pages_world import World, furnish
from tests.suite import find_chromium

# A page reports every violation of its own policy, so that a test sees it.
WATCH = """
addEventListener("securitypolicyviolation", (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
"""
Enter = Callable[..., Page]
# A deadline, not a claim: a page that is slow on a busy machine is not a wrong one. Claims name their own.
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the module. Its driver runs an event loop in this thread, where Django's rows must still be
    reachable: hence the variable, for as long as the browser is open."""
    path = find_chromium()
    if path is None:
        reason = (
            "There is no Chromium to test the pages with: apt install chromium, or set STUDIO_TEST_CHROMIUM."
        )
        pytest.fail(reason) if os.environ.get("CI", "").lower() in ("1", "true", "yes") else pytest.skip(
            reason
        )
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as driver:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_web(django_db_setup: None) -> Iterator[Web]:
    server = Web()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def web(running_web: Web, transactional_db: None) -> Web:
    """The module's web process; started again when a test killed it."""
    if running_web.process is None:
        running_web.start()
    return running_web


@pytest.fixture
def world(project: Project, owner: User, tmp_path: Path) -> World:
    return furnish(project, owner, tmp_path)


class Complaints(list[str]):
    """What the browser had to say: errors of scripts, of the policy, of the console."""


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest.fixture
def enter(chromium: Browser, web: Web, complaints: Complaints) -> Iterator[Enter]:
    """`enter(user, width=…, **options)`: a page of a fresh browser in which that person (or nobody) is logged in."""
    contexts: list[BrowserContext] = []

    def log_in(user: User | None = None, *, width: int = 1280, init: str = "", **options: Any) -> Page:
        context = chromium.new_context(
            base_url=web.origin, viewport={"width": width, "height": 900}, **options
        )
        contexts.append(context)
        context.set_default_timeout(30_000)
        if user is not None:
            name, value = cookie_of(user).split("=", 1)
            context.add_cookies([{"name": name, "value": value, "url": web.origin}])
        page = context.new_page()
        page.add_init_script(WATCH)
        if init:
            page.add_init_script(init)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        return page

    yield log_in
    for context in contexts:
        context.close()
