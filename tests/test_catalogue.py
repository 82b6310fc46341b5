"""Every fault we know of has a test, or a reason why it has none.

The catalogue: what may go wrong with storage and process (1 to 35), with what comes in
over HTTP (36 to 58), and with accounts and their abuse (59 to 80).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ABSENT = "does not apply: "  # there is no such thing here that could go wrong
ELSEWHERE = "cannot be shown here: "

CATALOGUE = [
    (
        1,
        "db.json is empty",
        [
            "test_store.py::test_an_invalid_file_is_refused_and_left_alone",
            "test_cli.py::test_a_bad_file_stops_the_start_in_one_line_and_stays_as_it_is",
            "test_http.py::test_a_damaged_file_is_503_for_all_and_left_alone",
        ],
    ),
    (
        2,
        "db.json is cut off, or full of NULs",
        [
            "test_store.py::test_a_file_cut_at_any_byte_is_refused_and_left_alone",
            "test_rubbish.py::test_a_complete_file_cut_at_any_byte_is_refused",
            "test_rubbish.py::test_a_file_with_any_bit_flipped_is_refused_or_its_sums_hold",
        ],
    ),
    (
        3,
        "db.json is JSON of another shape",
        ["test_store.py::test_an_invalid_file_is_refused_and_left_alone"],
    ),
    (
        4,
        "a number of seats that cannot be, or is no whole number",
        ["test_store.py::test_an_invalid_file_is_refused_and_left_alone"],
    ),
    (
        5,
        "the seats do not add up",
        [
            "test_store.py::test_a_refusal_names_the_place_in_the_file_and_both_numbers",
            "test_cli.py::test_an_audit_reports_sums_that_are_wrong",
        ],
    ),
    (
        6,
        "fields twice, NaN, UTF-16, great depth or length in db.json",
        [
            "test_faults.py::test_a_file_in_which_a_field_comes_twice_is_refused",
            "test_store.py::test_an_invalid_file_is_refused_and_left_alone",
        ],
    ),
    (
        7,
        "db.json edited by hand, also in the middle of a commit",
        [
            (
                "test_store.py::"
                "test_an_edit_by_hand_between_reading_and_swapping_is_not_lost"
            ),
            "test_store.py::test_an_edit_by_hand_in_the_middle_of_a_commit_is_not_lost",
            "test_store.py::test_every_edit_in_place_is_seen",
        ],
    ),
    (
        8,
        "a good file is put back while the server runs",
        [
            "test_store.py::test_a_restored_file_is_read",
            "test_partner.py::test_health_is_503_until_a_good_file_is_back",
        ],
    ),
    (
        9,
        "db.json is deleted while the server runs",
        [
            "test_store.py::test_a_file_that_is_gone_is_not_made_again_by_a_running_server",
            "test_cli.py::test_a_server_without_its_file_answers_503_until_it_is_back",
        ],
    ),
    (
        10,
        "db.json is a folder or a pipe",
        [
            "test_store.py::test_a_path_that_is_not_a_plain_file_is_refused_at_once_and_left_alone"
        ],
    ),
    (
        11,
        "db.json is a symbolic link",
        ["test_store.py::test_a_symbolic_link_stays_one_and_its_target_is_replaced"],
    ),
    (
        12,
        "the file's mode and owner",
        [
            "test_store.py::test_a_commit_keeps_the_mode_and_the_owner",
            "test_store.py::test_a_new_file_and_its_lock_are_readable_by_their_owner_alone",
            "test_store.py::test_a_file_with_passwords_is_readable_by_its_owner_alone",
        ],
    ),
    (
        13,
        "the folder is read-only",
        [
            (
                "test_store.py::"
                "test_in_a_folder_that_is_read_only_reads_go_on_and_nothing_changes"
            )
        ],
    ),
    (
        14,
        "the disk is full",
        [
            "test_cli.py::test_a_full_disk_refuses_changes_alone_and_only_while_it_is_full",
            (
                "test_cli.py::"
                "test_no_free_block_for_the_first_file_is_one_line_and_leaves_nothing"
            ),
        ],
    ),
    (
        15,
        "any call to the operating system fails",
        [
            (
                "test_crash.py::test_a_call_that_fails_changes_nothing_or_leaves_only_"
                "durability_in_doubt"
            ),
            "test_crash.py::test_a_request_whose_system_call_fails_gets_the_documented_answer",
            (
                "test_crash.py::test_a_start_that_fails_leaves_no_half_of_a_file_and_the_next_"
                "one_works"
            ),
        ],
    ),
    (
        16,
        "the disk takes less than it is given",
        [
            "test_store.py::test_a_disk_that_takes_a_few_bytes_at_a_time_gets_the_whole_file"
        ],
    ),
    (
        17,
        "no file descriptor is left",
        [
            (
                "test_faults.py::"
                "test_a_server_without_free_descriptors_reports_it_and_recovers"
            )
        ],
    ),
    (
        18,
        "kill -9 anywhere in a commit",
        [
            "test_crash.py::test_a_kill_at_any_call_leaves_the_old_file_or_the_new",
            (
                "test_crash.py::"
                "test_a_kill_at_any_real_system_call_leaves_the_old_file_or_the_new"
            ),
            (
                "test_servers.py::"
                "test_kill_9_under_load_loses_nothing_and_sells_nothing_twice"
            ),
        ],
    ),
    (
        19,
        "kill -9 while the first file is made",
        ["test_crash.py::test_a_kill_at_any_call_leaves_the_old_file_or_the_new"],
    ),
    (
        20,
        "the power goes",
        [
            "test_crash.py::test_a_power_cut_at_any_moment_loses_nothing_acknowledged",
            "test_crash.py::test_the_model_of_a_power_cut_catches_each_faulty_program",
        ],
    ),
    (
        21,
        "SIGTERM or Ctrl-C in a commit",
        [
            "test_cli.py::test_a_shutdown_finishes_the_request_under_way",
            "test_cli.py::test_a_shutdown_finishes_requests_that_wait_for_the_lock",
        ],
    ),
    (
        22,
        "a bug in a decision",
        [
            "test_faults.py::test_a_bug_in_one_decision_fails_that_request_alone",
            "test_store.py::test_a_failed_decision_fails_only_its_own_order",
        ],
    ),
    (
        23,
        "no memory for the new file",
        ["test_faults.py::test_a_write_without_memory_changes_nothing"],
    ),
    (
        24,
        "another process never lets the lock go",
        [
            (
                "test_store.py::"
                "test_while_another_process_has_the_lock_reads_are_answered_and_sales_are_not"
            ),
            "test_http.py::test_contention_has_its_own_error_text_and_changes_nothing",
        ],
    ),
    (
        25,
        "whoever has the lock is stopped, or killed",
        [
            "test_faults.py::test_a_lock_is_free_again_once_its_holder_is_killed",
            (
                "test_servers.py::"
                "test_kill_9_under_load_loses_nothing_and_sells_nothing_twice"
            ),
        ],
    ),
    (
        26,
        "the lock file is removed or replaced while it is held",
        [
            "test_store.py::test_a_lock_that_is_lost_while_it_is_held_is_noticed",
            "test_store.py::test_the_lock_file_is_never_removed_nor_replaced",
        ],
    ),
    (
        27,
        "the lock's path is a link, a folder or a pipe",
        [
            (
                "test_faults.py::"
                "test_a_lock_that_is_no_plain_file_is_refused_or_does_no_harm"
            )
        ],
    ),
    (
        28,
        "several servers on one file",
        [
            (
                "test_servers.py::"
                "test_two_servers_sell_exactly_all_seats_and_refuse_only_when_sold_out"
            ),
            "test_store.py::test_processes_that_sell_at_once_sell_each_seat_once",
            "test_histories.py::test_the_answers_of_two_servers_are_linearizable",
        ],
    ),
    (
        29,
        "a fork after loading",
        [
            "test_store.py::test_a_child_of_a_fork_works_with_the_store_it_was_given",
            "test_store.py::test_a_child_of_a_fork_has_no_part_in_its_parents_lock",
        ],
    ),
    (
        30,
        "the clock jumps",
        [
            "test_faults.py::test_a_clock_that_jumps_changes_no_order_and_no_wait",
            (
                "test_tickets.py::test_the_line_is_by_order_of_arrival_and_not_by_clock_or_"
                "place_in_the_file"
            ),
        ],
    ),
    (
        31,
        "the answer is lost after the commit",
        [
            "test_http.py::test_a_key_holds_after_a_restart_and_in_another_server",
            "test_partner.py::test_a_second_cancel_is_404_and_changes_nothing",
        ],
    ),
    (
        32,
        "something grows with every commit",
        ["test_store.py::test_hundreds_of_commits_and_refusals_leave_no_file_open"],
    ),
    (
        33,
        "the file grows",
        ELSEWHERE + "cancelled records are kept on purpose; what a "
        "sale costs in a long file is a measurement, and bench.py takes it",
    ),
    (
        34,
        "somebody cancels while others wait",
        [
            "test_partner.py::test_a_cancel_serves_the_head_in_the_same_change",
            "test_booking.py::test_fifty_simultaneous_cancels_serve_the_first_fifty_in_line",
            "test_models.py::test_all_dialects_together_do_what_a_simple_model_does",
            "test_tickets.py::test_the_invariants_hold_in_every_order_of_a_few_steps",
        ],
    ),
    (
        35,
        "a file of an older or a newer program",
        [
            "test_partner.py::test_a_file_of_seed_000_loads_unchanged",
            "test_partner.py::test_a_file_of_seed_000_can_be_sold_from_and_cancelled_in",
            "test_faults.py::test_a_file_of_a_newer_layout_is_refused_and_left_alone",
        ],
    ),
    (
        36,
        "more clients than the server can take",
        ELSEWHERE + "waitress bounds its "
        "connections and queues the rest in the system; to see that takes thousands",
    ),
    (
        37,
        "clients that send slowly",
        ["test_faults.py::test_slow_clients_do_not_block_other_clients"],
    ),
    (
        38,
        "a huge body",
        ["test_http.py::test_a_body_of_64_kib_is_accepted_and_one_byte_more_is_413"],
    ),
    (
        39,
        "chunks, and lengths that cannot be or contradict each other",
        [
            "test_rubbish.py::test_no_random_bytes_on_the_wire_break_the_server",
            "test_http.py::test_a_request_that_never_reaches_the_app_is_refused_in_json",
        ],
    ),
    (
        40,
        "no request line, huge headers or paths",
        ["test_rubbish.py::test_no_random_bytes_on_the_wire_break_the_server"],
    ),
    (
        41,
        "deep nesting in a body",
        ["test_http.py::test_a_body_of_any_depth_is_answered"],
    ),
    (
        42,
        "a field twice in a body",
        ["test_http.py::test_a_body_that_is_not_valid_json_is_400"],
    ),
    (
        43,
        "NaN, Infinity, 1E400",
        ["test_http.py::test_a_body_that_is_not_valid_json_is_400"],
    ),
    (
        44,
        "true for a number",
        ["test_partner.py::test_an_unusable_order_is_400_with_the_documented_text"],
    ),
    (
        45,
        "3.0 for a number",
        ["test_partner.py::test_an_order_of_3_0_seats_gets_three"],
    ),
    (
        46,
        "a text, a list, nothing for a number",
        ["test_partner.py::test_an_unusable_order_is_400_with_the_documented_text"],
    ),
    (
        47,
        "a number of seats that is out of range",
        [
            "test_partner.py::test_an_unusable_order_is_400_with_the_documented_text",
            "test_partner.py::test_an_order_may_have_one_to_ten_seats",
        ],
    ),
    (
        48,
        "thousands of digits",
        ["test_http.py::test_a_body_that_is_not_valid_json_is_400"],
    ),
    (
        49,
        "a byte order mark, UTF-16, UTF-32",
        ["test_http.py::test_a_body_that_is_not_valid_json_is_400"],
    ),
    (
        50,
        "half of a surrogate pair",
        ["test_http.py::test_a_body_that_is_not_valid_json_is_400"],
    ),
    (
        51,
        "control characters, and texts of great length",
        [
            "test_http.py::test_a_text_that_is_empty_or_long_or_not_one_plain_line_is_400"
        ],
    ),
    (
        52,
        "another Content-Type, or none",
        ["test_http.py::test_a_body_is_json_whatever_its_content_type_says"],
    ),
    (
        53,
        "a body that is no object",
        [
            "test_http.py::test_a_body_that_is_not_valid_json_is_400",
            "test_v1.py::test_a_booking_that_is_not_a_json_object_is_refused",
        ],
    ),
    (
        54,
        "odd ids in a path",
        [
            "test_http.py::test_an_odd_unknown_id_is_the_404_of_its_route",
            "test_http.py::test_an_odd_unknown_event_is_404",
        ],
    ),
    (
        55,
        "a method that is not there",
        ["test_http.py::test_an_unknown_method_is_405_with_the_allowed_ones"],
    ),
    (
        56,
        "HEAD and OPTIONS",
        [
            "test_http.py::test_head_answers_like_get_without_the_body",
            "test_faults.py::test_a_refused_options_request_has_the_content_type_json",
        ],
    ),
    (
        57,
        "a slash at the end, or two of them",
        [
            "test_http.py::test_a_trailing_slash_makes_no_difference",
            "test_http.py::test_a_doubled_slash_leads_to_no_redirect",
        ],
    ),
    (
        58,
        "an error that says too much, or no JSON",
        [
            "test_http.py::test_an_error_is_json_and_nothing_else",
            "test_http.py::test_a_bug_shows_no_traceback",
            "test_rubbish.py::test_no_random_request_causes_a_500_or_a_broken_file",
            "test_faults.py::test_a_query_that_is_not_utf_8_causes_no_500",
        ],
    ),
    (
        59,
        "tokens of other algorithms, or changed",
        [
            "test_accounts.py::test_a_forged_token_gives_no_access_in_any_dialect",
            "test_accounts.py::test_a_token_with_any_one_character_changed_is_bad",
        ],
    ),
    (
        60,
        "base64 that is read too kindly",
        ["test_accounts.py::test_a_token_with_any_one_character_changed_is_bad"],
    ),
    (
        61,
        "a token that is not ASCII",
        ["test_http.py::test_a_bad_token_is_refused_in_json"],
    ),
    (
        62,
        "claims of a wrong kind",
        [
            "test_accounts.py::test_a_forged_token_gives_no_access_in_any_dialect",
            "test_faults.py::test_a_token_whose_age_is_no_whole_number_is_bad",
        ],
    ),
    (
        63,
        "a weak secret, or one for each worker",
        [
            "test_accounts.py::test_a_jwt_secret_of_less_than_32_bytes_stops_the_start",
            (
                "test_accounts.py::"
                "test_without_jwt_secret_all_workers_share_one_key_in_a_private_file"
            ),
        ],
    ),
    (
        64,
        "finding out who has an account",
        [
            (
                "test_accounts.py::"
                "test_an_unknown_user_is_refused_like_a_wrong_password_at_the_same_cost"
            )
        ],
    ),
    (
        65,
        "guessing passwords",
        [
            "test_limits.py::test_ten_failed_logins_a_minute_are_allowed_and_the_eleventh_is_429",
            "test_login_limits.py::test_both_login_routes_share_their_count_of_failures",
        ],
    ),
    (
        66,
        "logins that eat memory",
        [
            "test_accounts.py::test_few_passwords_are_hashed_at_once",
            (
                "test_accounts.py::"
                "test_a_password_is_refused_below_8_characters_and_above_1024_bytes"
            ),
        ],
    ),
    (
        67,
        "a hash that is too cheap, or damaged",
        [
            "test_faults.py::test_a_password_is_stored_as_a_hash_that_is_expensive_to_guess",
            "test_faults.py::test_a_damaged_password_hash_matches_no_password",
        ],
    ),
    (
        68,
        "fields that are not the sender's to set",
        [
            "test_accounts.py::test_a_registration_ignores_role_id_and_version_in_the_body",
            "test_http.py::test_unknown_fields_are_ignored",
            "test_v1.py::test_a_new_event_ignores_id_maker_and_version_in_the_body",
        ],
    ),
    (
        69,
        "one name registered twice",
        [
            "test_accounts.py::test_only_one_of_simultaneous_registrations_of_a_name_succeeds",
            (
                "test_accounts.py::"
                "test_a_name_in_other_case_or_another_unicode_form_is_the_same_name"
            ),
        ],
    ),
    (
        70,
        "a good token of a user who is gone, or lost a role",
        [
            "test_accounts.py::test_a_token_of_a_missing_account_is_refused",
            (
                "test_accounts.py::"
                "test_a_role_is_read_from_the_store_and_not_from_the_token"
            ),
        ],
    ),
    (
        71,
        "cancelling what somebody else booked",
        [
            (
                "test_accounts.py::"
                "test_a_reservation_made_with_a_token_is_cancelled_by_its_owner_or_an_admin"
            ),
            "test_v1.py::test_a_booking_made_with_a_token_is_cancelled_only_by_its_user_or_an_admin",
        ],
    ),
    (
        72,
        "a hash or a secret in an answer or the log",
        [
            "test_accounts.py::test_no_log_line_contains_a_secret_or_a_token",
            (
                "test_accounts.py::"
                "test_a_registration_answers_with_the_new_account_and_nothing_else"
            ),
            "test_rubbish.py::test_no_random_request_causes_a_500_or_a_broken_file",
        ],
    ),
    (
        73,
        "a forged address",
        [
            "test_limits.py::test_a_forged_address_gives_no_second_limit",
            "test_limits.py::test_behind_a_trusted_proxy_the_address_that_the_proxy_saw_counts",
        ],
    ),
    (
        74,
        "a limiter that grows, or is walked around in IPv6",
        [
            "test_limits.py::test_the_memory_of_the_limiter_is_bounded",
            (
                "test_limits.py::"
                "test_one_ipv6_client_has_the_addresses_of_its_network_and_no_others"
            ),
        ],
    ),
    (
        75,
        "what a limited client is told",
        [
            "test_limits.py::test_the_101st_request_is_429_with_the_time_to_retry",
            (
                "test_limits.py::"
                "test_health_and_the_front_page_never_count_and_are_never_refused"
            ),
        ],
    ),
    (
        76,
        "log lines made by a client",
        [
            "test_faults.py::test_a_request_is_one_line_in_the_log_whatever_its_path",
            (
                "test_cli.py::"
                "test_each_request_is_one_line_on_stderr_with_its_version_and_attempts"
            ),
        ],
    ),
    (
        77,
        "pages of other sites",
        ["test_http.py::test_a_page_of_another_site_changes_nothing"],
    ),
    (
        78,
        "scripts in names, and the page in a frame",
        [
            "test_page.py::test_a_name_is_shown_as_text_and_runs_nothing",
            "test_page.py::test_the_policy_allows_this_server_and_one_script_of_one_answer",
        ],
    ),
    (79, "labels of metrics that explode", ABSENT + "there are no metrics"),
    (
        80,
        "metrics and the administration on the public port",
        ["test_faults.py::test_no_administration_path_and_no_file_is_served"],
    ),
]


@cache
def named_in(file):
    """The names of the functions that pytest finds in a file."""
    tree = ast.parse((Path(__file__).parent / file).read_text())
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_every_number_is_there_once():
    assert [number for number, _, _ in CATALOGUE] == [*range(1, 81)]


@pytest.mark.parametrize(
    ("fault", "shown"),
    [pytest.param(fault, shown, id=str(number)) for number, fault, shown in CATALOGUE],
)
def test_every_fault_has_tests_that_exist_or_a_reason(fault, shown):
    assert fault
    if isinstance(shown, str):
        assert shown.startswith((ABSENT, ELSEWHERE))
        assert len(shown) > 30
        return
    assert shown
    for each in shown:
        file, _, name = each.partition("::")
        assert named_in(file).count(name) == 1, each
