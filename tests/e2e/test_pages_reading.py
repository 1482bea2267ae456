"""Pages can be read and used: on a phone, by keyboard, without JavaScript, and within their own policy."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from federation.sessions.models import Session
from projects.models import User
from tests.e2e.conftest import Complaints, Enter
from tests.pages_world import World, pages_of

# Texts whose contrast to the nearest opaque ground is below 4.5 to 1, with the ratio (WCAG 2.2, 1.4.3).
TOO_FAINT = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const part = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const e of document.querySelectorAll("main *, header *, nav *, footer *")) {
    const speaks = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!speaks || !e.checkVisibility() || e.closest(".u-wrap, :disabled")) continue;
    const pair = [luminance(rgba(getComputedStyle(e).color)), luminance(ground(e))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);
  }
  return faint;
}"""
pytestmark = [pytest.mark.once, pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def test_no_page_breaks_its_policy_or_logs_an_error(
    world: World, owner: User, enter: Enter, complaints: Complaints
) -> None:
    page = enter(owner)
    for name, url in pages_of(world).items():
        page.goto(url)
        page.wait_for_load_state("networkidle" if name in ("session", "models", "client") else "load")
        assert not complaints, (name, complaints)


def test_no_page_scrolls_sideways_on_a_phone(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner, width=390, color_scheme="dark")
    urls = {**pages_of(world), "nothing": "/projects/no-such/"}
    for name, url in urls.items():
        page.goto(url)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} px too wide"


def test_the_sidebar_opens_by_its_button_on_a_phone(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner, width=390)
    page.goto(f"/projects/{world.project.slug}/")
    sidebar = page.get_by_role("navigation", name="Project")
    expect(sidebar).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    sidebar.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models", exact=True)).to_be_visible()


def test_the_keyboard_reaches_the_content_and_a_dialog_and_comes_back(
    world: World, owner: User, enter: Enter
) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/clients/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Register client")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Register a client")).to_be_visible()
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("site by keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="site by keyboard is registered")).to_be_visible()
    expect(page.locator("dialog:modal")).to_be_visible()  # the page's script is there to hear the key
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("link", name="site by keyboard").first).to_be_visible()


def test_a_refused_form_leads_to_the_field_that_is_wrong(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/sessions/")
    page.get_by_role("link", name="New session").click()
    page.get_by_role("link", name="Start session").click()
    page.get_by_label("Client settings").fill("{lr: 0.1}")
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_text("client_settings is not valid JSON")).to_be_visible()
    expect(page.get_by_label("Client settings")).to_be_focused()
    expect(page.get_by_label("Client settings")).to_have_value("{lr: 0.1}")


def test_who_types_before_the_script_is_there_keeps_the_field(
    world: World, owner: User, enter: Enter
) -> None:
    page = enter(owner)
    held: list[Route] = []
    page.route("**/js/page*.js", lambda route: held.append(route))
    with page.expect_request("**/js/page*.js"):
        page.goto(f"/projects/{world.project.slug}/sessions/new/start/", wait_until="commit")
    settings = page.get_by_label("Client settings")
    settings.fill("{lr")
    assert page.locator("dialog:modal").count() == 0
    held[0].continue_()
    expect(page.locator("dialog:modal")).to_be_visible()
    expect(settings).to_be_focused()
    expect(settings).to_have_value("{lr")


def test_a_word_to_the_reader_shows_above_an_open_dialog(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/clients/")
    page.get_by_role("link", name="Register client").click()
    page.get_by_label("Name", exact=True).fill("site-b")
    page.get_by_role("dialog").get_by_role("button", name="Register").click()
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("Copied.")).to_have_count(0)


def test_every_field_and_button_has_a_name(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner)
    unnamed = """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href]')]
      .filter(e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')
                   && !e.textContent.trim())
      .map(e => e.outerHTML)"""
    for name, url in pages_of(world).items():
        page.goto(url)
        assert page.evaluate(unnamed) == [], name


def test_text_stands_out_in_both_themes(world: World, owner: User, enter: Enter) -> None:
    """WCAG AA: 4.5 to 1, for what people read on the busiest page."""
    for theme in ("light", "dark"):
        page = enter(owner, color_scheme=theme)
        for name in ("session", "session-round", "session-new-start", "project", "events", "project-tokens"):
            page.goto(pages_of(world)[name])
            assert page.evaluate(TOO_FAINT) == [], (theme, name)


def test_a_chosen_theme_stays(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner, color_scheme="light")
    page.goto("/settings/")
    page.get_by_label("Dark").check()
    page.goto(f"/projects/{world.project.slug}/")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.goto("/settings/")
    expect(page.get_by_label("Dark")).to_be_checked()
    page.get_by_label("As the system").check()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") is None


def test_everything_reads_without_javascript(world: World, owner: User, enter: Enter) -> None:
    page = enter(owner, java_script_enabled=False)
    slug = world.project.slug
    page.goto(f"/projects/{slug}/sessions/{world.session.pk}/")
    expect(page.get_by_role("row").filter(has_text="finished")).to_contain_text("0.875")
    page.get_by_role("link", name="Models", exact=True).click()
    expect(page.get_by_role("link", name="Baseline 1", exact=True)).to_be_visible()
    page.get_by_role("link", name="Sessions", exact=True).click()
    page.get_by_role("link", name="New session").click()
    page.get_by_role("link", name="Start session").click()
    expect(page.get_by_role("button", name="Start run")).to_be_visible()


def test_a_destructive_button_sleeps_until_the_name_is_typed(world: World, owner: User, enter: Enter) -> None:
    Session.objects.filter(project=world.project).update(status="finished")
    page = enter(owner)
    page.goto(f"/projects/{world.project.slug}/settings/")
    button = page.get_by_role("button", name="Delete project")
    expect(button).to_be_disabled()
    page.get_by_label("Type Digits to go on").fill("Digit")
    expect(button).to_be_disabled()
    page.get_by_label("Type Digits to go on").fill("Digits")
    button.click()
    expect(page.get_by_text("Digits was deleted.")).to_be_visible()
