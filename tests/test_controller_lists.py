"""Everything that the published clients list, count and get: shapes, filters, pages, and a fixed number of queries."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from clients_app.models import Client
from federation.events.models import Event, Telemetry
from federation.models.models import ComputePackage, Metric, Model, Validation
from federation.sessions.choices import OrderStatus
from federation.sessions.commands import end_order
from federation.sessions.models import Order, Round, Session
from tests.controller_cast import Controller
from tests.pages_world import World

ALWAYS = {"committed_at", "updated_at"}
NODE = {"name", "role", "client_id"}
KEYS = {
    "clients": {"client_id", "name", "combiner", "combiner_preferred", "ip", "status", "last_seen", "package"},
    "combiners": {"combiner_id", "name", "address", "fqdn", "ip", "parent", "port"},
    "models": {"model_id", "model", "name", "parent_model", "session_id"},
    "packages": {"package_id", "name", "description", "file_name", "storage_file_name", "helper", "active"},
    "sessions": {"session_id", "name", "status", "session_config", "seed_model_id"},
    "runs": {"run_id", "session_id", "model_id", "completed_at_model_id", "round_timeout", "rounds", "completed_at"},
    "rounds": {"round_id", "status", "round_config", "round_data", "combiners"},
    "statuses": {"status_id", "status", "timestamp", "log_level", "type", "data", "session_id", "sender",
                 "correlation_id", "extra"},
    "validations": {"validation_id", "model_id", "data", "correlation_id", "timestamp", "session_id", "meta", "sender",
                    "receiver"},
    "metrics": {"metric_id", "key", "value", "step", "model_id", "round_id", "session_id", "sender", "timestamp"},
    "attributes": {"attribute_id", "key", "value", "sender", "timestamp"},
    "telemetry": {"telemetry_id", "key", "value", "sender", "timestamp"},
}  # fmt: skip
ID = {name: f"{name.removesuffix('s').removesuffix('e')}_id" for name in KEYS} | {
    "statuses": "status_id", "attributes": "attribute_id", "telemetry": "telemetry_id", "packages": "package_id",
}  # fmt: skip
# Queries of a list, whatever its length: the token, its project where a person asks, the count, the rows, and what
# their shape needs.
MOST_QUERIES = 10


@pytest.fixture
def full(furnished: World) -> World:
    """Also a run and an attribute."""
    Event.objects.create(
        project=furnished.project,
        kind="session.started",
        message="Baseline was started.",
        session=furnished.session,
    )
    Client.objects.filter(pk=furnished.client.pk).update(attributes={"region": "north"})
    return furnished


@pytest.mark.parametrize("noun", KEYS)
def test_a_list_is_a_count_and_a_result_in_this_order(full: World, controller: Controller, noun: str) -> None:
    count, result = controller.get(f"{noun}/").values()
    assert count == len(result) >= 1
    assert set(result[0]) >= KEYS[noun] | ALWAYS
    for who in ("sender", "receiver"):
        if who in result[0]:
            assert set(result[0][who]) == NODE


@pytest.mark.parametrize("noun", KEYS)
def test_a_count_is_a_bare_number_and_a_row_is_got_by_its_id(
    full: World, controller: Controller, noun: str
) -> None:
    listed = controller.get(noun)
    assert controller.get(f"{noun}/count") == controller.get(f"{noun}/count/") == listed["count"]
    for shape in listed["result"]:
        assert controller.get(f"{noun}/{shape[ID[noun]]}") == shape
        assert controller.get(f"{noun}/{shape[ID[noun]]}/") == shape


@pytest.mark.parametrize("noun", KEYS)
def test_a_list_and_a_count_also_take_their_filters_from_a_body(
    full: World, controller: Controller, noun: str
) -> None:
    shape = controller.get(noun)["result"][0]
    if ID[noun] == "round_id":  # numbered by us, and so no column
        filters: dict[str, Any] = {"status": shape["status"]}
    else:
        filters = {ID[noun]: shape[ID[noun]]}
    found = controller("POST", f"{noun}/list", filters).json()
    assert shape in found["result"]
    assert controller("POST", f"{noun}/count", filters).json() == found["count"] >= 1
    several = {key: f"{value},{value}" for key, value in filters.items()}
    assert controller("POST", f"{noun}/list/", several).json() == found


@pytest.mark.parametrize("noun", KEYS)
@pytest.mark.parametrize("name", ["no-such", "00000000-0000-0000-0000-000000000000", "99999999", "%00"])
def test_what_is_not_there_is_404_in_the_known_words(
    full: World, controller: Controller, noun: str, name: str
) -> None:
    answer = controller("GET", f"{noun}/{name}")
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("Entity with id: ")


@pytest.mark.parametrize("noun", KEYS)
def test_another_project_sees_none_of_it(
    full: World, controller: Controller, elsewhere: Controller, noun: str
) -> None:
    shape = controller.get(noun)["result"][0]
    if noun == "combiners":  # they serve every project
        assert elsewhere.get("combiners/")["result"][0]["active_clients"] == 0
        return
    assert elsewhere.get(noun) == {"count": 0, "result": []}
    assert elsewhere.get(f"{noun}/count") == 0
    assert elsewhere("GET", f"{noun}/{shape[ID[noun]]}").status_code == 404


@pytest.mark.parametrize("noun", KEYS)
def test_an_unknown_filter_is_refused_with_those_that_there_are(
    full: World, controller: Controller, noun: str
) -> None:
    answer = controller("GET", f"{noun}/?nonsense=1")
    assert answer.status_code == 400
    assert "nonsense" in answer.json()["message"]


def many(world: World, amount: int) -> None:
    """`amount` more of everything that lists grow by."""
    about = {"key": "k", "sha256": "0" * 64, "size_bytes": 1, "layout": []}
    for number in range(amount):
        client = Client.objects.create(project=world.project, name=f"c{number}", attributes={"n": number})
        model = Model.objects.create(
            project=world.project,
            kind="round",
            name=f"m{number}",
            parent=world.seed,
            session=world.session,
            **about,
        )
        session = Session.objects.create(
            project=world.project, name=f"s{number}", config=world.session.config, seed_model=world.seed,
            current_model=world.seed, rounds_wanted=1, status="finished",
        )  # fmt: skip
        Round.objects.create(
            project=world.project, session=session, number=1, status="finished", goal=1, min_updates=1,
            input_model=world.seed, output_model=model, deadline=world.session.created_at,
        )  # fmt: skip
        ComputePackage.objects.create(
            project=world.project, name=f"p{number}", file_name="p.tgz", key=f"packages/x/{number}.tgz",
            sha256="0" * 64, size_bytes=1, project_file="fedn.yaml",
        )  # fmt: skip
        Validation.objects.create(
            project=world.project, model=model, client=client, client_name=client.name, session=session,
            assignment_id=client.pk, data={"accuracy": number},
        )  # fmt: skip
        Metric.objects.create(
            project=world.project, model=model, session=session, client=client, round_number=1, source="logged",
            name="loss", value=number,
        )  # fmt: skip
        Telemetry.objects.create(
            project=world.project, client=client, at=world.session.created_at, name="cpu", value=1
        )
        Event.objects.create(
            project=world.project, kind="session.started", message="x", session=session, client=client
        )


@pytest.mark.parametrize("noun", KEYS)
def test_no_list_asks_a_query_per_row(full: World, controller: Controller, noun: str) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            controller.get(noun)
        return len(seen)

    controller.get(noun)  # the token's last use is written once a minute
    few = queries()
    many(full, 8)
    assert queries() == few <= MOST_QUERIES


def test_pages_and_order_come_in_headers(full: World, controller: Controller) -> None:
    many(full, 5)
    everything = [row["name"] for row in controller.get("clients/")["result"]]
    assert everything == ["c4", "c3", "c2", "c1", "c0", full.client.name], "newest first unless told"
    page = controller.get("clients/", x_limit=2, x_skip=1)
    assert ([row["name"] for row in page["result"]], page["count"]) == (["c3", "c2"], 6)
    oldest = controller.get("clients/", x_sort_key="committed_at", x_sort_order="asc", x_limit=1)
    assert oldest["result"][0]["name"] == full.client.name
    by_name = controller.get("clients/", x_sort_key="name", x_sort_order="asc")
    assert [row["name"] for row in by_name["result"]] == sorted(everything)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e9", "9" * 40, "²", ""])
def test_a_limit_that_is_no_number_is_none(full: World, controller: Controller, limit: str) -> None:
    sent = limit.encode().decode("latin-1")
    assert len(controller.get("statuses/", x_limit=sent)["result"]) == controller.get("statuses/count")


def test_ids_are_filtered_in_both_spellings_and_with_a_slash_behind(
    full: World, controller: Controller
) -> None:
    session, model = str(full.session.pk), str(full.model.pk)
    for asked in (
        f"sessionId={session}",
        f"session_id={session}",
        f"session_id={session}/",
        f"modelId={model}",
    ):
        assert controller.get(f"validations/?{asked}")["count"] == 1, asked
    assert controller.get(f"validations/?sessionId={model}")["count"] == 0
    assert controller.get(f"models/?session_id={session}/")["count"] == 1
    assert controller.get(f"rounds/?round_config.session_id={session}")["count"] == 2
    assert controller.get("validations/?session_id=nonsense")["count"] == 0


def test_senders_are_filtered_with_a_dot(full: World, controller: Controller) -> None:
    name, pk = full.client.name, full.client.pk
    for noun in ("validations", "telemetry", "statuses"):
        assert controller.get(f"{noun}/?sender.name={name}")["count"] == 1, noun
        assert controller.get(f"{noun}/?sender.name=nobody")["count"] == 0, noun
        assert controller.get(f"{noun}/?sender.client_id={pk}&sender.role=CLIENT")["count"] == 1, noun
    assert controller.get("validations/?receiver.role=COMBINER&receiver.name=c1")["count"] == 1
    assert controller.get("validations/?sender.role=COMBINER")["count"] == 0
    assert controller.get("statuses/?sender.role=REDUCER")["count"] == 1


def test_clients_are_online_or_offline(full: World, controller: Controller) -> None:
    Client.objects.create(project=full.project, name="away")
    assert [row["name"] for row in controller.get("clients/?status=online")["result"]] == [full.client.name]
    assert [row["name"] for row in controller.get("clients/?status=offline")["result"]] == ["away"]
    combiner = controller.get("combiners/c1")
    assert controller.get(f"combiners/{combiner['combiner_id']}") == combiner
    for named in (combiner["combiner_id"], "c1"):
        assert controller.get(f"clients/?status=online&combiner={named}")["count"] == 1
    assert controller.get("clients/?combiner=elsewhere")["count"] == 0


def test_a_round_says_what_its_users_look_for(full: World, controller: Controller) -> None:
    first, second = sorted(controller.get("rounds/")["result"], key=lambda row: int(row["round_id"]))
    assert (first["round_id"], second["round_id"]) == ("1", "2")
    assert (first["status"], second["status"]) == ("Finished", "Pending")
    assert first["round_config"]["session_id"] == str(full.session.pk)
    assert first["round_config"]["client_settings"] == {"lr": 0.1}
    assert first["round_data"]["reduce"]["time_aggregate_model"] == 0.0


def test_a_validation_holds_what_the_client_sent_as_text(full: World, controller: Controller) -> None:
    shape = controller.get("validations/")["result"][0]
    assert json.loads(shape["data"]) == full.validation.data
    assert shape["sender"] == {"name": full.client.name, "role": "CLIENT", "client_id": str(full.client.pk)}


def test_statuses_are_the_event_log(full: World, controller: Controller) -> None:
    assert controller.get("statuses/?type=NETWORK")["result"][0]["status"] == "It connected to c1."
    assert controller.get("statuses/?type=LOG")["count"] == 1
    assert controller.get("statuses/?type=MODEL_UPDATE")["count"] == 0
    assert controller.get(f"statuses/?sessionId={full.session.pk}")["count"] == 1
    event = controller.get("statuses/")["result"][0]
    assert controller.get(f"statuses{event['status_id']}") == event, "as `fedn status get` asks"


def test_the_trail_leads_to_the_seed_and_back(full: World, controller: Controller) -> None:
    model, seed = str(full.model.pk), str(full.seed.pk)

    def ids(query: str, **headers: Any) -> list[str]:
        return [row["model_id"] for row in controller.get(f"models/{model}/ancestors{query}", **headers)]

    assert ids("?include_self=true") == [model, seed]
    assert ids("?include_self=true", x_reverse="true", x_limit=2) == [seed, model]
    assert ids("") == ids("?include_self=false") == [seed]
    assert ids("?include_self=true", x_limit=1)[0] == model


def test_attributes_are_read_by_client_and_set_by_who_looks_after_it(
    full: World, controller: Controller
) -> None:
    pk = str(full.client.pk)
    for word in ("client_ids", "node_ids"):
        said = controller("POST", "attributes/current", {word: [pk, "no-such"]}).json()
        assert said == {pk: {"region": "north"}, "no-such": "Entity with client_id: no-such not found"}
    made = controller(
        "POST", "attributes/", {"key": "charging", "value": "true", "sender": {"client_id": pk}}
    )
    assert made.status_code == 201
    assert controller.get(f"clients/{pk}/attributes") == {"region": "north", "charging": "true"}
    assert controller("POST", "attributes/list", {"entity_id": pk}).json()["count"] == 2
    for word in ("entity_id", "node_id"):
        assert controller("POST", "attributes/", {"key": word, "value": 1, word: pk}).json()["value"] == "1"
    assert controller("POST", "attributes/", {"key": "x", "value": "y", "sender": {}}).status_code == 400
    assert controller("POST", "attributes/current", {}).json() == {
        "message": "Missing required field: client_ids"
    }


def test_the_config_of_a_client_names_this_project(full: World, controller: Controller) -> None:
    said = controller.get("clients/config?checksum=true")
    assert said["network_id"] == full.project.slug
    assert said["discover_host"] == f"http://testserver/{full.project.slug}-fedn-reducer"
    assert said["checksum"] == full.package.sha256
    assert "checksum" not in controller.get("clients/config?checksum=false")


def test_the_controllers_status_is_that_of_the_projects_sessions(full: World, controller: Controller) -> None:
    for path in ("/get_controller_status", f"/{full.project.slug}-fedn-reducer/get_controller_status"):
        assert controller.get(path) == {"state": "monitoring"}
    Session.objects.update(status="finished")
    assert controller.get("/get_controller_status") == {"state": "idle"}


def test_predictions_are_asked_of_clients_and_read_back(full: World, controller: Controller) -> None:
    Client.objects.filter(pk=full.client.pk).update(dialect="fedn")
    named, model = str(uuid.uuid4()), str(full.model.pk)
    for sent in ({"prediction_id": named, "model_id": None}, {"prediction_id": "mine", "model_id": model}):
        answer = controller("POST", "predictions/start", sent)
        assert (answer.status_code, answer.json()) == (200, {"message": "Prediction session started"})
    assert controller.get("predictions/") == {"count": 0, "result": []}, "nobody has answered yet"
    for order in Order.objects.all():
        end_order(
            client_id=full.client.pk, order_id=order.pk, status=OrderStatus.COMPLETED, response={"total": 3}
        )
    found = controller.get(f"predictions/?modelId={model}&sender.name={full.client.name}")
    assert found["count"] == len(found["result"]) == 2
    assert {row["prediction_id"] for row in found["result"]} == {named, "mine"}
    for shape in found["result"]:
        assert json.loads(shape["data"]) == {"total": 3}
        assert controller.get(f"predictions/{shape['prediction_id']}") == shape
        assert controller.get(f"predictions/?correlationId={shape['correlation_id']}")["result"] == [shape]
    assert controller.get("predictions/count") == 2


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({}, 400, "prediction_id is required"),
        ({"prediction_id": 5}, 400, "prediction_id is required"),
        ({"prediction_id": "p", "model_id": "x"}, 404, "Model x not found"),
        ({"prediction_id": "p"}, 400, "No client that can do this is online."),
    ],
)
def test_a_prediction_that_cannot_be_is_refused(
    full: World, controller: Controller, sent: dict[str, Any], status: int, words: str
) -> None:
    answer = controller("POST", "predictions/start", sent)
    assert (answer.status_code, answer.json()["message"]) == (status, words)


def test_a_status_that_a_client_reported_is_in_its_own_words(full: World, controller: Controller) -> None:
    said = {"type": "MODEL_UPDATE_REQUEST", "log_level": "AUDIT", "correlation_id": "abc"}
    Event.objects.create(
        project=full.project,
        kind="client.status",
        message="Received request from combiner.",
        client=full.client,
        data=said,
    )
    [shape] = controller.get("statuses/?type=MODEL_UPDATE_REQUEST")["result"]
    assert {key: shape[key] for key in said} == said
    assert controller.get("statuses/?log_level=AUDIT")["result"] == [shape]
    assert shape not in controller.get("statuses/?type=LOG")["result"]
    assert shape not in controller.get("statuses/?log_level=INFO")["result"]


def test_an_unknown_address_of_a_project_is_404_with_a_message(full: World, controller: Controller) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = controller(method, f"/{full.project.slug}-fedn-reducer/api/v1/no/such")
        assert (answer.status_code, "nothing at" in answer.json()["message"]) == (404, True)
    assert controller("DELETE", "sessions/").status_code == 405
