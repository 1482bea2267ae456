"""What clients say of themselves decides who may take part: the language of `where`."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from clients_app.models import Client
from federation.dialects.native import studio_v1_pb2 as words
from federation.sessions import engine
from federation.sessions.config import parse_spec
from federation.sessions.config.conditions import (
    Both,
    Comparison,
    Either,
    Expression,
    Has,
    Not,
    OneOf,
    Tag,
    Value,
)
from federation.sessions.config.expression import parse_where
from foundation.errors import StudioError
from tests.rig import ROOT, Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import Rows

CLIENT = {
    "region": "eu",
    "gpu": 2,
    "memory_gb": "15.5",
    "os": "linux",
    "charging": True,
    "tags": ["mobile", "lab"],
    "site": "Umeå north",
    "version": "1.10",
    "nothing": None,
}


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        ("region=eu and gpu>=1", True),
        ("region=us or gpu>=1", True),
        ("region=us or region=eu and gpu>2", False),
        ("(region=us or region=eu) and gpu<=2", True),
        ("not (os=windows) or tag:desktop", True),
        ("not os=linux", False),
        ("NOT os=windows AND tag:mobile", True),
        ("tag:lab", True),
        ("tag:eu", False),  # a word, not one of a list
        ("tags=lab", True),
        ("tags!=lab", False),
        ("tags!=desktop", True),
        ("memory_gb>8", True),  # text that reads as a number
        ("memory_gb>16", False),
        ('memory_gb="15.50"', False),
        ("memory_gb=15.50", True),
        ('version="1.1"', False),
        ("gpu>1.5", True),
        ("gpu=two", False),
        ('gpu="2"', False),
        ("os>3", False),
        ("os<mac", True),
        ("charging=true", True),
        ("charging!=true", False),
        ("charging=false", False),
        ("charging>0", False),
        ('site="Umeå north"', True),
        ("site in (lund, 'Umeå north')", True),
        ("gpu in (1, 2)", True),
        ("not gpu in (1, 3)", True),
        ("has gpu", True),
        ("has tpu", False),
        ("has nothing", False),
        ("tpu=1", False),
        ("tpu!=1", False),
        ("not tpu=1", True),
        ("gpu==2", True),
    ],
)
def test_a_condition_says_who_fits(where: str, fits: bool) -> None:
    asked = parse_where(where)
    assert asked is not None and asked.fits(CLIENT) is fits


def test_tags_may_be_one_text_with_commas() -> None:
    """All that some clients can send is text."""
    asked = parse_where("tag:lab")
    assert asked is not None
    assert asked.fits({"tags": "mobile, lab"}) and asked.fits({"tags": "lab"})
    assert not asked.fits({"tags": "labs"}) and not asked.fits({"other": "lab"})


@pytest.mark.parametrize(
    "where", [f"a in ({','.join(['1'] * 497)})", " or ".join(["a=1"] * 142), " or ".join(["tag:x"] * 110)]
)
@pytest.mark.parametrize("entry", ["2", 2])
def test_the_longest_condition_on_the_longest_list_is_answered_in_no_time(where: str, entry: object) -> None:
    """Sessions ask every client while they hold a lock."""
    asked = parse_where(where)
    began = time.thread_time()
    assert asked is not None and not asked.fits({"a": [entry] * 16_000})
    assert time.thread_time() - began < 0.1


def test_of_a_list_the_first_hundred_entries_are_looked_at() -> None:
    asked = parse_where("a=1 and tag:1")
    assert asked is not None
    assert asked.fits({"a": [0] * 99 + [1]}) and not asked.fits({"a": [0] * 100 + [1]})


def test_saying_nothing_asks_for_nothing() -> None:
    assert parse_where("") is parse_where(" \n ") is None


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("region=eu and gpu>=", "after `region=eu and gpu>=` a value is expected at character 20"),
        ("gpu", "after `gpu` one of = != < <= > >= or `in` is expected at character 4"),
        ("a=1 b=2", "after `a=1` `and`, `or` or the end is expected at character 5, not `b`"),
        ("(a=1", "after `(a=1` `)` is expected at character 5"),
        ("a in 3", "a list in parentheses is expected at character 6, not `3`"),
        ("a in (1, )", "a value is expected at character 10, not `)`"),
        ("a in (1 2)", "`,` or `)` is expected at character 9, not `2`"),
        ("a=1 or ;", "`;` means nothing, at character 8"),
        ('os="linux', "the quotation that begins at character 4 has no end"),
        ("and=3", "the name of an attribute is expected at character 1, not `and`"),
        ("a=in", "after `a=` a value is expected at character 3, not `in`"),
        ("tag:", "after `tag:` a value is expected at character 5"),
        ("not " * 21 + "a=1", "parentheses and `not` go more than 20 deep"),
        ("(" * 400 + "a=1" + ")" * 400, "parentheses and `not` go more than 20 deep"),
        ("a=" + "1" * 999, "at most 1000 characters, not 1001"),
        ("a=\x00", "a control character means nothing, at character 3"),
        ('a="\x00"', "a control character is not text, at character 4"),
        (7, "where must be text"),
    ],
)
def test_a_mistake_is_refused_with_its_place_when_the_session_is_made(where: Any, sentence: str) -> None:
    with pytest.raises(StudioError) as refused:
        parse_spec({"seed_model": str(uuid.uuid4()), "selection": {"where": where}})
    assert sentence in refused.value.message and refused.value.status == 400
    assert refused.value.data["field"].endswith("where")


def test_the_conditions_that_the_docs_show_are_read() -> None:
    page = (ROOT / "docs" / "selection.md").read_text()
    table = page.split("| condition |")[1].split("\n\n")[0]
    shown = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(shown) >= 8 and all(parse_where(one) for one in shown)
    with pytest.raises(StudioError) as refused:
        parse_where("gpu>=")
    assert refused.value.message in page


# --- against a plain evaluator ------------------------------------------------------------------------------------
NAMES = ["region", "gpu", "tags", "two words", "and", "x.y", "os"]
WORDS = ["eu", "us", "1", "2.5", "-3", "true", "false", "mobile", "1e2"]
names = st.sampled_from(NAMES)
values = st.one_of(
    st.sampled_from(WORDS).map(Value),
    st.one_of(
        st.sampled_from([*WORDS, "and", 'say "hi"', "back\\slash", "Umeå north"]),
        st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=5),
    ).map(lambda text: Value(text, quoted=True)),
)
conditions: st.SearchStrategy[Expression] = st.one_of(
    st.builds(Comparison, names, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), values),
    st.builds(OneOf, names, st.lists(values, min_size=1, max_size=3).map(tuple)),
    st.builds(Has, names),
    st.builds(Tag, values),
)


def several(
    kind: type[Both] | type[Either], parts: st.SearchStrategy[Expression]
) -> st.SearchStrategy[Expression]:
    return st.lists(parts, min_size=2, max_size=3).map(lambda found: kind(tuple(found)))


expressions = st.recursive(
    conditions,
    lambda part: st.one_of(part.map(Not), several(Both, part), several(Either, part)),
    max_leaves=8,
)
entries = st.one_of(
    st.sampled_from([*WORDS, "2.50", "linux", "us, mobile"]),
    st.booleans(),
    st.integers(-4, 4),
    st.just(2.5),
    st.none(),
)
clients = st.dictionaries(names, st.one_of(entries, st.lists(entries, max_size=3)), max_size=6)


def plainly(asked: Expression, client: dict[str, Any]) -> bool:
    """The rules of the language, said another way."""
    match asked:
        case Both():
            return all(plainly(part, client) for part in asked.parts)
        case Either():
            return any(plainly(part, client) for part in asked.parts)
        case Not():
            return not plainly(asked.part, client)
        case Has():
            return client.get(asked.name) is not None
        case Tag():
            words = client.get("tags")
            written = [word.strip() for word in words.split(",")] if isinstance(words, str) else []
            lists = [held for held in client.values() if isinstance(held, list)]
            return any(relation(entry, asked.tag) == 0 for held in [written, *lists] for entry in held)
        case OneOf():
            return any(plainly(Comparison(asked.name, "=", value), client) for value in asked.values)
        case Comparison():
            held = client.get(asked.name)
            if held is None:
                return False
            found = [relation(entry, asked.value) for entry in (held if isinstance(held, list) else [held])]
            if asked.sign == "!=":
                return 0 not in found
            signs = {"=": {0}, "<": {-1}, "<=": {-1, 0}, ">": {1}, ">=": {0, 1}}
            return any(one in signs[asked.sign] for one in found)
    raise AssertionError(asked)


def relation(entry: Any, value: Value) -> int | None:
    """-1, 0 or 1 as the entry is less, equal or more; None: they do not compare."""
    if isinstance(entry, bool):
        return 0 if not value.quoted and value.text == str(entry).lower() else None
    number = None
    if not value.quoted:
        try:
            number = float(value.text)
        except ValueError:
            pass
    if isinstance(entry, str) and number is not None:
        try:
            entry = float(entry)
        except ValueError:
            return None
    if isinstance(entry, str):
        return (entry > value.text) - (entry < value.text)
    if entry is None or number is None:
        return None
    return (entry > number) - (entry < number)


@given(expressions, clients)
def test_every_condition_agrees_with_a_plain_reading_of_the_rules(
    asked: Expression, client: dict[str, Any]
) -> None:
    assert asked.fits(client) == plainly(asked, client)


@given(expressions)
def test_a_condition_that_is_written_out_reads_as_the_same(asked: Expression) -> None:
    written = str(asked)
    if len(written) <= 1000:
        assert parse_where(written) == asked


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    *"()<>=!,:\"'\\ \t\x00\ud800",
                    "and",
                    "or",
                    "not",
                    "in",
                    "has",
                    "tag",
                    "gpu",
                    "1",
                    "<=",
                    "eu",
                ]
            ),
            max_size=40,
        ).map(" ".join),
    ),
    clients,
)
def test_whatever_is_typed_is_read_or_refused_with_a_sentence(text: str, client: dict[str, Any]) -> None:
    try:
        asked = parse_where(text)
    except StudioError as refused:
        assert refused.status == 400 and refused.message.startswith("where")
        refused.message.encode()
    else:
        assert asked is None or asked.fits(client) in (True, False)


# --- in rounds ----------------------------------------------------------------------------------------------------
def says(client: Client, **attributes: Any) -> None:
    Client.objects.filter(pk=client.pk).update(attributes=attributes)


def test_only_clients_that_fit_take_part(rows: Rows) -> None:
    a, b, c = rows.online(rows.lease(), "a", "b", "c")
    says(a, region="eu", gpu=1)
    says(b, region="us", gpu=4)
    says(c, region="eu")
    session = rows.running(selection={"where": "region=eu and gpu>=1"})
    assert [row.client.name for row in rows.round(session).assignments.all()] == ["a"]
    assert rows.task(session, a).why == "all that fit take part"
    told = rows.round(session).plan["selection"]
    assert (told["online"], told["eligible"], told["where"]) == (3, 1, "region=eu and gpu>=1")


def test_a_session_says_how_many_are_online_and_do_not_fit(rows: Rows) -> None:
    a, _b, _c = rows.online(rows.lease(), "a", "b", "c")
    says(a, gpu=1)
    session = rows.running(selection={"where": "gpu>=1"}, min_clients=3)
    assert (
        session.waiting_for
        == "2 more clients that fit to come online (1 of 3 are; 2 online do not fit gpu>=1)"
    )


@pytest.mark.django_db(transaction=True)
def test_a_client_that_says_more_of_itself_wakes_the_session_that_waits_for_one_like_it(
    rig: Rig, combiner_here: Callable[..., CombinerHere], redis_url: str
) -> None:
    """It waits for long, and would look again only in a while."""
    _client, secret = rig.client("a")
    wire = rig.connect(combiner_here(), secret)
    session = rig.session(selection={"where": "gpu>=1"})
    engine.advance(session.pk)
    with redis.Redis.from_url(redis_url) as hints:
        hints.flushdb()
        wire.say(attributes=words.Attributes(attributes_json='{"gpu": 1}'))
        rig.wait_until(lambda: hints.exists(f"studio-woken:{session.pk}"), what="a hint")
    engine.advance(session.pk)
    assert wire.next_task().round == 1


def test_a_long_condition_is_shortened_where_it_is_waited_for(rows: Rows) -> None:
    rows.online(rows.lease(), "a")
    session = rows.running(selection={"where": " or ".join(f"site={n:030}" for n in range(25))})
    assert len(session.waiting_for) < 300 and session.waiting_for.endswith("…)")
