"""The dialog of a new session: short at first, all of it within reach, by keyboard and without a script."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse
from playwright.sync_api import Locator, Page, expect

from federation.sessions.models import Session
from projects.models import User
from tests.e2e.conftest import Complaints, Enter
from tests.pages_world import World

pytestmark = [pytest.mark.once, pytest.mark.browser, pytest.mark.django_db(transaction=True)]
STARTED = re.compile(r"/sessions/[0-9a-f-]{36}/")


def dialog(page: Page, world: World) -> None:
    page.goto(reverse("session-new", args=[world.project.slug, "start"]))
    expect(page.get_by_role("dialog")).to_be_visible()


def fold(page: Page, title: str) -> Locator:
    return page.locator("details.fold > summary").filter(has_text=title)


def test_the_plain_case_is_as_short_as_ever(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    dialog(page, world)
    expect(page.locator("dialog :is(input, select, textarea):visible")).to_have_count(11)
    expect(page.locator("details.fold")).to_have_count(5)
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(STARTED)
    expect(page.get_by_text("FedAvg", exact=True)).to_be_visible()


def test_the_keyboard_opens_a_part_and_reaches_what_its_choices_show(
    world: World, owner: User, enter: Enter, complaints: Complaints
) -> None:
    page = enter(owner)
    dialog(page, world)
    privacy = fold(page, "Privacy")
    privacy.focus()
    expect(page.get_by_label("Differential privacy")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Differential privacy")).to_be_visible()
    expect(page.get_by_label("Clip norm", exact=True)).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Differential privacy")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_label("Clip norm", exact=True)).to_be_visible()
    expect(page.get_by_label("Quantile followed")).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Clip norm", exact=True)).to_be_focused()
    page.get_by_label("Adaptive clip norm").focus()
    page.keyboard.press("Space")
    expect(page.get_by_label("Quantile followed")).to_be_visible()
    page.get_by_label("Differential privacy").uncheck()
    expect(page.get_by_label("Quantile followed")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert complaints == []


def test_the_numbers_of_guided_selection_wait_behind_one_more_fold(
    world: World, owner: User, enter: Enter, complaints: Complaints
) -> None:
    page = enter(owner)
    dialog(page, world)
    fold(page, "Which clients take part").click()
    numbers = page.get_by_text("The numbers of guided selection")
    expect(numbers).to_be_hidden()
    page.get_by_label("Clients of a round are chosen").select_option("guided")
    expect(page.get_by_label("Exploration", exact=True)).to_be_hidden()
    numbers.click()
    page.get_by_label("Exploration", exact=True).fill("0.5")
    page.get_by_label("Share of the clients").fill("0.25")
    page.get_by_label("Only clients where").fill("region=eu and gpu>=1")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(STARTED)
    chosen = Session.objects.latest("created_at").config["selection"]
    assert (chosen["strategy"], chosen["exploration"], chosen["fraction"]) == ("guided", 0.5, 0.25)
    facts = page.get_by_role("region", name="Settings of this session")
    expect(facts).to_contain_text("Only clients where: region=eu and gpu>=1")
    assert complaints == []


def test_a_mode_shows_its_own_numbers_only(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    dialog(page, world)
    fold(page, "Rounds, or without them").click()
    expect(page.get_by_label("Grace (s)")).to_be_visible()
    expect(page.get_by_label("Buffer size")).to_be_hidden()
    page.get_by_label("Grace (s)").fill("5")
    page.get_by_label("The server makes a model").select_option("asynchronous")
    expect(page.get_by_label("Grace (s)")).to_be_hidden()
    page.get_by_label("Buffer size").fill("4")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(STARTED)
    config = Session.objects.latest("created_at").config
    assert config["asynchronous"]["buffer_size"] == 4 and config["grace_s"] is None
    expect(page.get_by_text("FedAvg, asynchronous")).to_be_visible()


def test_a_mistake_in_a_fold_opens_it_at_the_field(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    dialog(page, world)
    clients = fold(page, "Which clients take part")
    clients.click()
    page.get_by_label("Only clients where").fill("region=")
    clients.click()
    expect(page.get_by_label("Only clients where")).to_be_hidden()
    page.get_by_role("button", name="Start run").click()
    field = page.get_by_label("Only clients where")
    expect(field).to_be_focused()
    expect(field).to_have_value("region=")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(fold(page, "Privacy").locator("xpath=..")).not_to_have_attribute("open", "")


def test_without_a_script_every_part_opens_and_arrives(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner, java_script_enabled=False)
    dialog(page, world)
    fold(page, "Privacy").click()
    page.get_by_label("Differential privacy").check()
    page.get_by_label("Expected clients").fill("50")
    page.get_by_label("Noise multiplier").fill("1.5")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(STARTED)
    private = Session.objects.latest("created_at").config["privacy"]
    assert (private["noise_multiplier"], private["expected_clients"]) == (1.5, 50)
    expect(page.get_by_text("No round has spent anything yet.")).to_be_visible()
