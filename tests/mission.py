"""Which named tests show which line of the mission (A: studio's pages, B: packages and clients)."""

from __future__ import annotations

JOURNEY = "e2e/test_pages_journey.py::test_from_sign_up_to_a_downloaded_model"
DEMO = "test_demo.py::test_from_nothing_to_a_trained_model"
COMMAND = "test_sdk_command.py::test_from_login_to_a_downloaded_model"
SIDEBAR = "test_pages.py::test_a_project_has_exactly_these_seven_in_its_sidebar"
BUSY = "test_pages.py::test_every_page_of_a_busy_project_renders_for_its_owner"
START_ON_PAGES = "test_pages.py::test_package_then_seed_then_start_makes_a_running_session"
CONFIG_PAGE = "test_pages.py::test_a_registered_client_shows_its_config_once_and_the_command"
CONFIG = "test_clients_rest.py::test_registering_a_client_makes_a_config_with_a_token_of_its_own"
RPCS = "test_permissions_rpc.py::test_every_rpc_answers_each_caller_as_the_table_says"
COMBINERS = "test_clients_rest.py::test_combiners_are_listed_with_this_projects_active_clients_only"
ONLINE = "test_clients_rest.py::test_the_list_says_who_is_online_since_when_on_which_combiner_doing_what"
LIVE_ROW = "e2e/test_pages_live.py::test_a_row_changes_within_two_seconds_with_polling_off_and_no_reload"
ROUNDS = "test_round_end_to_end.py::test_three_rounds_of_two_clients_end_in_the_weighted_mean"
ENV_ONCE = (
    "test_sdk_environment.py::test_a_killed_build_leaves_nothing_half_made_and_three_clients_then_build_once"
)
RUNS = "test_sdk_client.py::test_a_package_runs_with_the_data_path_and_its_log_reaches_the_events"
ENTRY = "test_sdk_entry_points.py::test_a_command_runs_in_its_folder_with_quoted_arguments"
PROJECT_FILES = "test_sdk_package.py::test_all_project_files_are_understood"
REPORT = "test_models_measured.py::test_the_whole_report_is_kept_and_every_scalar_is_a_metric"
METADATA = "test_models_measured.py::test_training_metadata_and_logged_metrics_are_kept_by_source"
CURVE = "e2e/test_pages_live.py::test_the_curve_gets_its_next_point_without_a_reload"
WHOLE_REPORT = "test_pages.py::test_a_validation_report_downloads_whole"

LINES: dict[str, list[str]] = {
    "A1": [JOURNEY, LIVE_ROW],
    "A9": ["test_pages.py::test_a_newcomer_signs_up_and_creates_a_project"],
    "A10": ["test_pages.py::test_an_invited_person_joins_by_the_link_that_was_shown"],
    "A11": [JOURNEY],
    "A12": [JOURNEY],
    "A13": ["test_up.py::test_one_json_line_tells_where_everything_is", DEMO],
    "A14": ["test_projects_rest.py::test_a_project_without_a_fitting_name_is_refused", JOURNEY],
    "A15": ["test_pages.py::test_a_shared_project_is_listed_with_my_role"],
    "A16": [SIDEBAR],
    "A17": [BUSY],
    "A18": [BUSY, COMBINERS],
    "A21": [CONFIG_PAGE, "test_pages.py::test_removing_a_client_needs_its_name"],
    "A22": [ONLINE],
    "A23": [CONFIG],
    "A24": [RPCS, "test_clients_rest.py::test_a_client_learns_who_it_is_and_the_emptiest_combiner_first"],
    "A25": [COMBINERS],
    "A26": [COMBINERS],
    "A27": [BUSY, JOURNEY],
    "A28": [START_ON_PAGES],
    "A29": [START_ON_PAGES],
    "A30": ["test_pages.py::test_wrong_session_settings_come_back_with_a_sentence", START_ON_PAGES],
    "A31": [
        JOURNEY,
        "test_seed_models_rest.py::test_the_trail_lists_means_with_the_same_queries_for_few_and_for_many",
    ],
    "A32": [CURVE],
    "A33": ["test_events_rest.py::test_an_event_is_told_whole", RUNS],
    "A34": ["test_projects_rest.py::test_admins_change_the_settings_and_members_do_not"],
    "A35": ["test_projects_rest.py::test_an_admin_adds_somebody_by_e_mail_whatever_its_case"],
    "A36": ["test_pages.py::test_deleting_a_project_needs_its_name"],
    "A37": [START_ON_PAGES],
    "A39": [COMMAND, DEMO],
    "A40": [START_ON_PAGES, JOURNEY],
    "A41": ["test_packages_services.py::test_a_name_that_is_taken_is_refused_and_leaves_nothing"],
    "A42": ["test_pages.py::test_a_new_config_downloads_and_ends_the_old_token"],
    "A43": ["test_clients_rest.py::test_renaming_keeps_the_token_and_refuses_a_taken_name", JOURNEY],
    "A47": ["test_wire_tls.py::test_a_private_authority_works"],
    "A48": ["test_demo.py::test_the_three_clients_built_their_environment_once_and_share_no_image"],
    "A49": [ONLINE, "test_presence.py::test_connecting_and_leaving_are_in_the_event_log"],
    "A50": [START_ON_PAGES],
    "A51": [RUNS],
    "A52": [LIVE_ROW, JOURNEY],
    "B1": [DEMO],
    "B2": [COMMAND],
    "B3": [DEMO],
    "B4": ["test_sdk_package.py::test_what_was_packed_is_what_is_unpacked"],
    "B5": [PROJECT_FILES],
    "B6": [PROJECT_FILES, "test_sdk_entry_points.py::test_a_missing_entry_point_is_named"],
    "B7": [ENTRY],
    "B8": [RUNS],
    "B9": [ENV_ONCE],
    "B10": [ENV_ONCE],
    "B11": [RUNS],
    "B12": [DEMO, COMMAND],
    "B13": [COMMAND],
    "B14": ["test_sdk_tensors.py::test_a_package_gets_back_what_it_saved"],
    "B15": [RUNS],
    "B16": [DEMO],
    "B17": [RUNS],
    "B18": [ENTRY],
    "B19": [RUNS, "test_sdk_client.py::test_callbacks_of_two_clients_make_the_weighted_average"],
    "B20": ["test_sdk_tensors.py::test_metadata_without_num_examples_is_refused_where_it_is_written", ROUNDS],
    "B21": [METADATA],
    "B22": [RUNS],
    "B23": [ROUNDS, START_ON_PAGES],
    "B24": ["test_sdk_client.py::test_an_entry_point_that_fails_says_why", DEMO],
    "B25": [REPORT],
    "B26": [CURVE, REPORT],
    "B27": [WHOLE_REPORT, COMMAND],
    "B28": [DEMO],
    "B29": [COMMAND],
    "B30": [COMMAND],
    "B31": [DEMO],
    "B32": [COMMAND],
    "B33": [COMMAND],
    "B34": [COMMAND],
    "B35": ["test_sdk_package.py::test_package_create_from_the_command_line_prints_the_sha256"],
    "B36": ["test_sdk_package.py::test_ignore_follows_gitignores_rules"],
    "B37": [COMMAND, JOURNEY],
    "B38": [ROUNDS, RUNS],
}
