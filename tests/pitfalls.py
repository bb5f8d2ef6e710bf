"""What went wrong with approvals elsewhere, and the tests that show that it does not here.

`test_pitfalls.py` holds the names against the tests, and the tests of `test_bad_input.py` and
`e2e/test_pitfalls.py` against the names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pitfall:
    """One thing that can go wrong.

    Attributes:
        text: What holds here, in one sentence.
        tests: What proves it, as `path::function` below `tests`.
        missing: The part that is not there yet; "" where all of it is.
    """

    text: str
    tests: tuple[str, ...]
    missing: str = ""


PITFALLS: dict[int, Pitfall] = {
    1: Pitfall(
        "an answer or an item that a caller makes up is its own decision under the rules, or 403",
        (
            "e2e/test_forgery.py::test_items_that_no_upstream_made_are_refused",
            "e2e/test_forgery.py::test_an_answer_to_a_request_that_nobody_made_is_refused",
            "e2e/test_forgery.py::test_a_caller_cannot_approve_its_own_held_call",
            "e2e/test_forgery.py::test_an_approver_may_answer_in_the_native_form_and_joins_the_turn",
            "e2e/test_forgery.py::test_a_conversation_cannot_be_seeded_with_mcp_items",
            "e2e/test_bad_input.py::test_items_for_a_conversation_that_would_authorize",
        ),
    ),
    2: Pitfall(
        "a caller widens nothing: no approval mode, address, connector, tunnel, other caller of "
        "tools, nor another tenant's chain",
        (
            "e2e/test_mcp.py::test_what_a_caller_may_not_bring_is_refused_and_not_sent",
            "e2e/test_mcp.py::test_an_mcp_tool_cannot_hide_in_another_tool",
            "e2e/test_mcp.py::test_an_mcp_tool_cannot_hide_beside_tools",
            "e2e/test_mcp.py::test_rules_are_compiled_into_the_request",
            "e2e/test_chain.py::test_a_foreign_response_reads_like_an_unknown_one",
            "unit/test_tools_and_rules.py::test_no_wish_of_a_caller_widens_what_rules_and_registry_say",
        ),
    ),
    3: Pitfall(
        "clicks, approvers, workers and deliveries that come twice or at once, and a replica that "
        "dies at any step, run a tool once",
        (
            "e2e/test_approvals_api.py::test_the_same_key_and_body_get_the_same_answer_again",
            "e2e/test_approvals_stream.py::test_many_decisions_at_once_run_each_tool_once",
            "state/test_approvals.py::test_one_of_many_workers_claims",
            "state/test_approvals.py::test_a_request_is_dispatched_once",
            "state/test_approvals.py::test_a_lease_that_lapsed_after_dispatch_is_never_sent_again",
            "state/test_approval_machine.py::test_the_store_does_what_the_model_says",
            "state/test_webhooks.py::test_an_event_that_is_handed_out_again_is_not_sent_again",
            "reliability/test_races.py::test_one_decision_of_twenty_wins",
            "reliability/test_failpoints.py::test_a_replica_that_dies_at_a_step_is_replaced",
            "reliability/test_webhooks.py::"
            "test_the_end_of_a_turn_whose_replica_died_is_told_once_by_another",
        ),
    ),
    4: Pitfall(
        "a client or a gateway that repeats after a 5xx runs nothing twice",
        (
            "e2e/test_native_approvals.py::test_a_client_that_repeats_by_itself_runs_nothing_twice",
            "e2e/test_forgery.py::test_an_answer_that_may_have_run_is_not_sent_again",
            "e2e/test_held_turns.py::test_a_lost_answer_asks_a_person_and_a_retry_completes_the_turn",
        ),
    ),
    5: Pitfall(
        "a decision after its time does not count, although nobody swept, by the store's clock alone",
        (
            "state/test_approvals.py::test_a_late_vote_does_not_count_although_nobody_swept",
            "e2e/test_bad_input.py::test_a_decision_after_expiry",
            "e2e/test_pitfalls.py::"
            "test_the_clock_of_a_replica_neither_ends_nor_prolongs_an_approval",
        ),
    ),
    6: Pitfall(
        "a caller who leaves loses nothing, and who comes later sees what is pending",
        (
            "e2e/test_approvals_stream.py::test_a_caller_who_leaves_a_held_turn_loses_nothing",
            "e2e/test_approvals_json.py::test_prefer_wait_holds_the_answer",
            "e2e/test_inbox.py::"
            "test_an_inbox_tells_what_happens_and_goes_on_where_it_broke_off_on_any_replica",
        ),
    ),
    7: Pitfall(
        "a response with an open approval is in progress, whatever the upstream says, and "
        "cancelling or deleting it ends the approval",
        (
            "e2e/test_approvals_json.py::"
            "test_a_held_turn_is_pending_and_a_polling_client_gets_its_end",
            "e2e/test_approvals_json.py::"
            "test_a_turn_that_was_cancelled_while_it_was_held_is_no_parent",
            "e2e/test_odd_upstreams.py::test_deleting_a_held_turn_ends_every_stream_of_it",
            "e2e/test_background.py::test_a_person_decides_in_the_middle",
            "e2e/test_background.py::test_cancel_while_a_person_decides_runs_nothing",
        ),
    ),
    8: Pitfall(
        "all requests of a response are answered together, whoever decides each, and new ones are "
        "a new batch",
        (
            "e2e/test_approvals_json.py::test_a_mixed_batch_is_answered_once_as_a_whole",
            "e2e/test_approvals_stream.py::test_the_sdk_sees_one_response_over_several_rounds",
            "e2e/test_native_approvals.py::test_all_requests_of_a_response_are_answered_together",
        ),
    ),
    9: Pitfall(
        "what a stateless turn needs outlives its approval, and the keys that sealed it",
        (
            "e2e/test_pitfalls.py::test_keys_may_rotate_while_an_approval_waits",
            "e2e/test_pitfalls.py::test_a_hold_without_end_ends_when_its_turn_is_kept_no_longer",
            "state/test_approvals.py::test_a_turn_that_waits_is_kept_as_long_as_what_it_waits_for",
            "state/test_at_rest.py::"
            "test_a_rotation_of_keys_loses_no_approval_and_gives_nobody_two_votes",
            "e2e/test_limits.py::test_a_body_that_is_too_large_is_413",
        ),
    ),
    10: Pitfall(
        "denials and expiries are answered upstream, so that the chain goes on; what cannot be is "
        "taken back",
        (
            "e2e/test_approvals_json.py::test_an_expiry_is_told_as_what_it_is",
            "e2e/test_approvals_json.py::test_a_caller_who_answers_too_late_can_still_go_on",
            "e2e/test_held_turns.py::"
            "test_a_rewind_ends_the_turn_and_the_chain_goes_on_from_before_it",
            "e2e/test_held_turns.py::"
            "test_a_turn_whose_rule_says_rewind_is_taken_back_when_nobody_answers",
            "e2e/test_native_approvals.py::"
            "test_a_lost_answer_is_taken_back_when_its_caller_says_so",
        ),
    ),
    11: Pitfall(
        "rules that are read again may withdraw an approval and never make one of a denial; the "
        "version that asked is on record",
        (
            "e2e/test_pitfalls.py::"
            "test_what_was_not_approved_stays_so_when_the_rules_would_allow_it_now",
            "e2e/test_approvals_stream.py::"
            "test_an_approval_does_not_move_to_another_server_or_past_a_new_deny",
            "e2e/test_held_turns.py::"
            "test_a_held_turn_stays_with_its_rules_while_a_replica_has_them",
            "state/test_approvals.py::test_one_deny_wins_over_approvals_below_the_quorum",
        ),
    ),
    12: Pitfall(
        "a grant is for its arguments, server, pin, principal, chain and time, and never wider",
        (
            "e2e/test_grants.py::test_a_grant_of_empty_arguments_runs_only_them",
            "e2e/test_grants.py::test_exact_arguments_are_exact",
            "e2e/test_grants.py::test_the_same_tool_on_another_server_and_under_another_label_is_asked",
            "e2e/test_grants.py::test_a_server_that_moved_drops_what_was_granted_for_it",
            "e2e/test_grants.py::test_another_principal_or_chain_is_asked",
            "e2e/test_grants.py::test_time_ends_a_grant",
            "e2e/test_grants.py::test_a_deny_rule_that_comes_later_beats_every_grant",
        ),
    ),
    13: Pitfall(
        "an approval is for the server as it was registered: another address or credential, or "
        "none, supersedes it",
        (
            "e2e/test_pitfalls.py::test_an_approval_is_for_the_server_as_it_was_registered",
            "e2e/test_native_approvals.py::test_an_answer_does_not_move_to_another_server",
            "e2e/test_approvals_api.py::"
            "test_an_approval_that_holds_no_more_when_it_is_sent_is_superseded_on_record",
        ),
    ),
    14: Pitfall(
        "arguments that readers may read differently are never allowed by a rule, and people see "
        "every character",
        (
            "e2e/test_pitfalls.py::"
            "test_arguments_that_readers_may_read_differently_are_not_allowed_by_a_rule",
            "unit/test_rules.py::test_arguments_that_readers_may_read_differently_are_not_read",
            "e2e/test_loops.py::"
            "test_a_call_beyond_what_people_can_read_is_denied_with_the_true_cause",
            "console/test_render.py::test_a_hidden_character_is_written_out_and_warned_of",
            "e2e/test_secrets.py::test_a_secret_that_a_model_spells_in_pieces_is_not_shown",
        ),
    ),
    15: Pitfall(
        "arguments are shown to those who decide but for what is masked, and are in no log, "
        "message, audit or dump",
        (
            "e2e/test_masked_arguments.py::test_a_masked_call_runs_with_its_true_values",
            "e2e/test_masked_arguments.py::test_who_may_reveals_and_the_audit_knows_it",
            "unit/test_masking.py::test_destinations_amounts_and_paths_are_never_taken_for_secrets",
            "e2e/test_operate.py::test_logs_are_json_lines_with_ids_and_without_content_or_secrets",
            "e2e/test_webhook.py::test_asked_and_resolved_are_told_signed_and_thin",
            "e2e/test_audit.py::test_a_decision_is_told_with_rule_actor_fingerprint_and_outcome",
            "state/test_at_rest.py::test_a_dump_shows_no_content",
            "state/test_audit.py::test_a_dump_shows_nothing_of_what_is_told",
        ),
        missing="no masking of chosen arguments for approvers, so nothing to reveal either",
    ),
    16: Pitfall(
        "text of a model or a server is shown as text: no markup, script or form of a message",
        (
            "console/test_console.py::test_an_argument_of_tricks_is_shown_whole_and_does_nothing",
            "browser/test_inbox.py::test_arguments_full_of_tricks_run_nothing_and_hide_nothing",
            "unit/test_messages.py::test_a_name_cannot_be_markup_in_slack",
            "unit/test_messages.py::test_a_teams_message_is_a_card_that_parses_no_name",
        ),
    ),
    17: Pitfall(
        "a link or another site decides nothing: no GET, no forged or framed form, no redirect "
        "elsewhere after signing in",
        (
            "console/test_console.py::test_get_and_head_decide_nothing",
            "e2e/test_approvals_api.py::test_a_get_never_decides",
            "console/test_console.py::test_a_forged_form_decides_nothing",
            "console/test_console.py::test_who_comes_second_is_told_and_changes_nothing",
            "console/test_console.py::test_every_answer_has_the_headers",
            "console/test_console.py::test_there_is_no_open_redirect",
        ),
    ),
    18: Pitfall(
        "nobody decides their own request: not by a second key, nor as the end user of it",
        (
            "e2e/test_approvals_api.py::"
            "test_nobody_decides_its_own_request_not_even_by_a_second_key",
            "e2e/test_bad_input.py::test_self_approval_by_a_second_key_of_the_same_subject",
            "unit/test_tools_and_rules.py::test_who_may_decide",
            "e2e/test_grants.py::test_nobody_is_answered_by_a_grant_of_their_own",
        ),
    ),
    19: Pitfall(
        "who left the group decides no more, and a quorum that nobody can reach does not load",
        (
            "e2e/test_bad_input.py::test_an_approver_who_was_removed_meanwhile",
            "e2e/test_approvals_api.py::"
            "test_who_is_named_by_new_rules_does_not_decide_what_was_asked_before",
            "platform/test_checks.py::test_a_quorum_larger_than_its_group_is_a_fault",
        ),
    ),
    20: Pitfall(
        "a loop of approvals ends by rounds, tokens and repeated denials",
        (
            "e2e/test_loops.py::test_a_model_that_calls_for_ever_is_stopped_with_an_error",
            "e2e/test_loops.py::test_a_program_that_approves_for_itself_is_stopped",
            "e2e/test_loops.py::test_a_chain_that_has_used_its_tokens_goes_on_no_more",
            "e2e/test_loops.py::test_what_was_denied_twice_is_not_asked_a_third_time",
        ),
    ),
    21: Pitfall(
        "a rule or engine that fails, or has no answer, never allows",
        (
            "unit/test_rules.py::test_what_cannot_be_evaluated_is_never_allowed",
            "unit/test_cel.py::test_an_error_or_an_answer_of_another_kind_is_no_answer",
            "e2e/test_rules.py::test_a_cel_expression_decides_and_fails_closed",
            "e2e/test_rules.py::test_opa_without_a_proper_answer_never_allows",
            "e2e/test_rules.py::test_opa_that_is_not_there_never_allows",
        ),
    ),
    22: Pitfall(
        "no schema and no webhook leads the gateway elsewhere, and no pattern keeps it busy",
        (
            "e2e/test_pins.py::test_a_schema_that_leads_elsewhere_is_not_followed_and_asks",
            "unit/test_schemas.py::test_references_that_multiply_or_turn_in_a_circle_are_refused",
            "unit/test_schemas.py::test_patterns_are_linear_or_not_used",
            "unit/test_addresses.py::test_what_is_not_public_is_refused_and_may_be_allowed",
            "e2e/test_webhook.py::test_a_redirect_is_not_followed",
            "state/test_webhooks.py::"
            "test_a_name_that_leads_elsewhere_at_the_second_look_is_refused",
        ),
    ),
    23: Pitfall(
        "a message verifies with the common libraries, over its raw body, while secrets rotate, "
        "and keeps its id when it comes again",
        (
            "e2e/test_webhook.py::test_both_common_libraries_verify_a_message",
            "e2e/test_webhook.py::test_an_old_secret_signs_beside_the_new_one_while_it_is_kept",
            "e2e/test_webhook.py::test_what_the_receiver_did_not_take_is_told_again_later",
            "state/test_webhooks.py::test_the_reference_vector_of_standard_webhooks",
        ),
    ),
    24: Pitfall(
        "a Redis that evicts or keeps nothing is refused, and no decision is lost by a failover",
        (
            "platform/test_checks.py::test_a_redis_that_evicts_is_a_fault",
            "platform/test_checks.py::test_a_redis_without_a_file_is_a_fault_unless_accepted",
            "state/test_faults.py::test_what_somebody_relies_on_is_on_disk_first",
            "reliability/test_redis.py::test_a_redis_that_is_killed_comes_back_with_every_decision",
            "reliability/test_sentinel.py::test_a_failover_loses_and_doubles_nothing",
        ),
    ),
    25: Pitfall(
        "the model is told the true cause: an expiry, a withdrawal or a change is no human refusal",
        (
            "e2e/test_approvals_json.py::test_an_expiry_is_told_as_what_it_is",
            "e2e/test_approvals_api.py::"
            "test_who_asks_or_an_admin_withdraws_the_request_and_the_model_is_told_so",
            "e2e/test_pins.py::"
            "test_a_tool_that_drifts_while_its_approval_waits_is_told_to_everybody",
            "unit/test_tools_and_rules.py::test_only_an_approval_is_told_as_one",
        ),
    ),
    26: Pitfall(
        "no safety check of computer use is acknowledged that nobody approved",
        ("e2e/test_bad_input.py::test_a_safety_check_that_nobody_approved",),
        missing="people cannot approve such checks yet, so every acknowledgement is refused",
    ),
}

BAD_INPUT: dict[str, tuple[str, ...]] = {
    "a stale fingerprint": ("e2e/test_bad_input.py::test_a_stale_fingerprint",),
    "changed arguments": (
        "e2e/test_bad_input.py::test_changed_arguments",
        "e2e/test_forgery.py::test_an_altered_request_is_refused",
    ),
    "a decision after expiry": ("e2e/test_bad_input.py::test_a_decision_after_expiry",),
    "self-approval by a second key of the same subject": (
        "e2e/test_bad_input.py::test_self_approval_by_a_second_key_of_the_same_subject",
    ),
    "an approver who was removed meanwhile": (
        "e2e/test_bad_input.py::test_an_approver_who_was_removed_meanwhile",
    ),
    "a decision without the reason that its rule wants": (
        "e2e/test_bad_input.py::test_a_decision_without_its_reason",
    ),
    "a choice for a turn that is not in doubt": (
        "e2e/test_bad_input.py::test_a_choice_for_a_turn_that_is_not_in_doubt",
    ),
    "a quorum larger than the group": (
        "platform/test_checks.py::test_a_quorum_larger_than_its_group_is_a_fault",
        "platform/test_cli.py::test_serve_refuses_what_check_refuses",
    ),
    "unknown fields in rules": (
        "platform/test_settings.py::test_a_fault_in_a_rule_names_file_line_and_rule",
        "e2e/test_rules.py::test_validate_names_every_fault_with_its_place",
    ),
    "a rule that errors while evaluating": (
        "e2e/test_rules.py::test_what_a_deny_rule_does_not_understand_is_not_let_through",
    ),
    "a webhook URL on a private address": (
        "e2e/test_webhook.py::test_what_cannot_be_an_endpoint_is_refused_by_field_and_reason",
        "e2e/test_webhook.py::test_what_admins_do_and_what_is_refused_is_in_the_audit",
    ),
    "`$ref` in tool schemas": (
        "e2e/test_pins.py::test_a_schema_that_leads_elsewhere_is_not_followed_and_asks",
    ),
}
"""Refused with a named reason and, where a person or caller tried it, in the audit."""
