-- What a combiner may do in the database, and nothing else. Run as the owner of Studio's tables, once the role exists
-- and again after each upgrade; docs/combiners.md says how. tests/test_combiners_credentials.py runs rounds with it.
revoke all on all tables in schema public from studio_combiner;
grant usage on schema public to studio_combiner;

-- Who calls: tokens are proven, and the account behind one must be open. No password, no e-mail address.
grant select (id, username, is_active, is_staff, is_superuser, first_name, last_name, last_login, date_joined)
    on projects_user to studio_combiner;
grant select on projects_project, tokens_token to studio_combiner;
grant update (last_used_at) on tokens_token to studio_combiner;

-- Itself, and who is connected where.
grant select, insert, update on clients_app_combiner to studio_combiner;
grant select on clients_app_client, clients_app_registration to studio_combiner;
grant update (combiner_id, connection_epoch, connection_id, connected_at, last_seen_at, dialect, version, attributes)
    on clients_app_client to studio_combiner;

-- What clients are given, and what they measured.
grant select on federation_models_model, federation_models_computepackage, federation_models_projectdefaults
    to studio_combiner;
grant update (id) on federation_models_model to studio_combiner; -- so that it may lock a row, as Postgres has it
grant insert on federation_models_model to studio_combiner; -- the average of a combiner that was alone in a round
grant select, insert on federation_models_validation to studio_combiner;
grant select, insert, update on federation_models_metric to studio_combiner;

-- Rounds: what is owed, accepted and folded. Accepting the last update may close a round, and open the next.
grant select, update on federation_sessions_session to studio_combiner;
grant select, insert, update
    on federation_sessions_round, federation_sessions_combinershare, federation_sessions_assignment,
       federation_sessions_selectionscore
    to studio_combiner;
grant select on federation_sessions_command to studio_combiner;
grant select, update on federation_sessions_order to studio_combiner;

-- What happened.
grant select, insert on federation_events_event, federation_events_telemetry to studio_combiner;
