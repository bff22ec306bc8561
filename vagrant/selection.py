"""A pytest plugin: which tests run in a guest when none are named.

Compiling the programs takes most of a sandbox's start: ten seconds and more where the processor is emulated. So these
are the tests that share a sandbox or a set of hooks with others, and those below, worth a start of their own or in need
of none. Of the many that share a sandbox with credentials there is one or two of a kind: they differ in what is said
within TLS, which no kernel reads.
"""

from __future__ import annotations

import pytest

_SHARED = {"inside", "bench"}
_OTHERS = {
    "kernel/test_doctor.py": ("test_doctor_finds_everything_here",),
    "kernel/test_confinement.py": (
        "test_landlock_judges_ports_when_told_to",
        "test_files_can_be_moved_and_linked_between_directories",
        "test_who_breaks_into_the_proxy_finds_nothing",
    ),
    "kernel/test_redirect.py": ("test_io_uring[4000-allow-203.0.113.14]", "test_pid_is_the_real_one"),
    "kernel/test_run.py": ("test_the_command_has_no_privilege",),
    "kernel/test_ca_bundle.py": ("test_every_name_of_the_bundle_has_it[as it is]",),
    "kernel/test_confined_tls.py": ("test_everything_works_where_the_proxy_is",),
    "kernel/test_broker_process.py": (
        "test_it_is_the_account_that_asked",
        "test_nobody_looks_into_it[True]",
        "test_an_old_secret_is_gone_from_its_memory",
        "test_it_dies_with_the_supervisor[('account',)]",
    ),
    "bypass/test_secret_ways.py": (
        "test_a_replaced_secret_is_never_seen[_rename]",
        "test_the_sandbox_ends_when_the_directory_itself_is_replaced[_exchange]",
    ),
    "bypass/test_injection_ways.py": (
        "test_a_phantom_is_taken_wherever_clients_put_it[api]",
        "test_nobody_brings_a_key_of_his_own[api]",
        "test_a_redirect_takes_it_nowhere",
        "test_no_field_takes_it_out_again[basic]",
        "test_what_a_server_repeats_is_covered[api-in the body]",
        "test_what_a_server_repeats_is_covered[narrow-in two chunks]",
        "test_what_is_no_response_is_not_shown[compressed]",
        "test_a_value_that_cannot_stand_there_stays_out[api-a line break]",
        "test_a_replaced_value_is_the_one_that_is_sent",
        "test_no_credential_is_anywhere_in_the_sandbox",
        "test_nothing_that_has_a_credential_can_be_reached",
        "test_a_service_wants_the_phantom[api]",
        "test_a_services_path_leads_to_its_own_requests",
    ),
    "bypass/test_intercept_ways.py": (
        "test_a_body_with_two_ends_goes_nowhere[CL.TE]",
        "test_a_body_stays_one[extensions]",
        "test_names_that_disagree_take_nobody_anywhere[another Host-tunnelled]",
        "test_a_permitted_host_leads_to_no_credential[redirected-api]",
        "test_the_address_that_was_dialled_is_nobodys",
        "test_a_later_request_names_the_same_host[narrow]",
        "test_who_cannot_prove_a_name_gets_no_request[stranger]",
        "test_nothing_goes_in_the_clear[api]",
        "test_a_method_that_no_rule_has_is_refused[POST]",
    ),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those. Each name has to be some test's: one that was renamed would otherwise silently run no more."""
    named = {f"tests/{file}::{test}" for file, tests in _OTHERS.items() for test in tests}
    if unknown := named - {item.nodeid for item in items}:
        raise pytest.UsageError(f"vagrant/selection.py names no test: {', '.join(sorted(unknown))}")
    kept = [item for item in items if _SHARED & set(getattr(item, "fixturenames", ())) or item.nodeid in named]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
