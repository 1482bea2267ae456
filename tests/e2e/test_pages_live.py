"""Open pages change by themselves."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import expect

from federation.events.services import publish
from federation.sessions.models import Session
from federation.sessions.services import start_session
from projects.models import User
from tests.cast import actor
from tests.e2e.conftest import Enter
from tests.live_web import Web
from tests.pages_world import World

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
NO_SOCKETS = """
window.WebSocket = class {
  static OPEN = 1;
  constructor() { setTimeout(() => this.onclose && this.onclose({ code: 1006 }), 5); }
};
"""


@pytest.fixture
def waiting(world: World, owner: User) -> Session:
    """A second session that was not started yet."""
    return Session.objects.create(
        project=world.project,
        name="Second",
        config={},
        seed_model=world.seed,
        current_model=world.seed,
        rounds_wanted=5,
        created_by=owner,
    )


def test_a_row_changes_within_two_seconds_with_polling_off_and_no_reload(
    world: World, waiting: Session, owner: User, enter: Enter
) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/sessions/?poll=off")
    row = page.locator(f"#session-{waiting.pk}")
    expect(row).to_contain_text("created")
    expect(page.locator("#live-state")).to_have_attribute("data-state", "live")
    # the first push of a process opens its connection, and may be lost to a slow one: not what is timed here
    with page.expect_response(lambda answer: "/sessions/" in answer.url):
        publish(project_id=world.project.pk, kind="session.noted", message="the first push")
    page.evaluate("window.notReloaded = true")

    start_session(actor=actor(owner), session=waiting)

    began = time.monotonic()
    expect(row).to_contain_text("running", timeout=2000)
    assert time.monotonic() - began < 2
    assert page.evaluate("window.notReloaded") is True


def test_five_events_while_the_web_process_was_dead_show_once_each(
    world: World, owner: User, web: Web, enter: Enter
) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/events/?poll=off")
    expect(page.locator("#live-state")).to_have_attribute("data-state", "live")
    page.evaluate("window.notReloaded = true")

    web.kill()
    expect(page.locator("#live-state")).to_have_attribute("data-state", "waiting")
    for number in range(5):
        publish(project_id=world.project.pk, kind="round.finished", message=f"while it was dead: {number}.")
    web.start()

    for number in range(5):
        expect(page.get_by_text(f"while it was dead: {number}.")).to_have_count(1, timeout=20_000)
    publish(project_id=world.project.pk, kind="round.finished", message="after it came back")
    expect(page.get_by_text("after it came back")).to_have_count(1)
    ids = page.eval_on_selector_all("tr[data-event]", "rows => rows.map(row => row.dataset.event)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("window.notReloaded") is True


def test_without_a_socket_the_page_polls_while_it_is_seen(
    world: World, waiting: Session, owner: User, enter: Enter
) -> None:
    page = enter(owner, init=NO_SOCKETS)
    page.goto(f"/projects/{world.project.slug}/sessions/")
    row = page.locator(f"#session-{waiting.pk}")
    expect(row).to_contain_text("created")
    start_session(actor=actor(owner), session=waiting)
    expect(row).to_contain_text("running", timeout=9000)


def test_a_paused_tail_stands_still_until_it_is_resumed(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/events/")
    expect(page.locator("#live-state")).to_have_attribute("data-state", "live")
    page.get_by_role("button", name="Pause").click()
    publish(project_id=world.project.pk, kind="round.finished", message="said while paused")
    with pytest.raises(AssertionError):
        expect(page.get_by_text("said while paused")).to_be_visible(timeout=1500)
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("said while paused")).to_have_count(1)


def test_what_a_reader_opened_stays_open_when_its_part_is_drawn_anew(
    world: World, owner: User, enter: Enter
) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/models/{world.model.pk}/")
    expect(page.locator("#live-state")).to_have_attribute("data-state", "live")
    page.get_by_text("Whole JSON").click()
    expect(page.get_by_text('"accuracy": 0.875')).to_be_visible()
    with page.expect_response(lambda answer: answer.url.endswith(f"/models/{world.model.pk}/")):
        publish(project_id=world.project.pk, kind="validation.received", message="another")
    expect(page.get_by_text('"accuracy": 0.875')).to_be_visible()


def test_the_curve_gets_its_next_point_without_a_reload(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/sessions/{world.session.pk}/")
    expect(page.locator("#curves figcaption")).to_have_text("accuracy")
    expect(page.locator("#curves canvas")).to_be_visible()
    world.session.metrics.create(
        project=world.project,
        model=world.seed,
        session=world.session,
        round_number=1,
        source="validation_mean",
        name="loss",
        value=0.5,
    )
    publish(project_id=world.project.pk, kind="validation.received", message="more")
    expect(page.locator("#curves figcaption")).to_have_text(["accuracy", "loss"])
