"""A condition that is not one of our ETags is refused, and the refusal is true."""

from __future__ import annotations

import re

import pytest
from furnished import CHANGES, error_of, unchanged

MANGLED = [  # what compressing proxies make of "V"
    'W/"V"',
    '"V-gzip"',
    'W/"V-gzip"',
    '"V--gzip"',
    '"V;gzip"',
    '"V;br"',
    '"V-br"',
    '"gzip-V"',
]


def version_of(client, event_id):
    """The version of an event that is there; of one to be opened, 0."""
    if event_id is None:
        return 0
    return client.get(f"/events/{event_id}").json["version"]


@pytest.mark.parametrize("name", CHANGES)
def test_a_mangled_etag_is_412_and_the_text_does_not_claim_a_change(house, db, name):
    client, root, todo = house
    change = todo[name]
    version = version_of(client, change.event_id)
    for mangled in MANGLED:
        headers = root | {"If-Match": mangled.replace("V", str(version))}
        with unchanged(db):
            answer = change.send(client, headers=headers)
        assert answer.status_code == 412
        assert answer.headers["ETag"] == f'"{version}"'
        text = error_of(answer)
        assert not re.search("has changed|moved on", text)
        assert re.search("ETag", text)
        assert re.search("(?i)weak|changed on (its|the) way|proxy", text)
        assert f'"{version}"' in text  # what to send instead
    headers = root | {"If-Match": f'"{version}"'}
    assert change.send(client, headers=headers).status_code in {200, 201, 204}


@pytest.mark.parametrize("name", CHANGES)
def test_an_outdated_etag_of_ours_is_412_and_the_text_says_outdated(house, db, name):
    client, root, todo = house
    change = todo[name]
    version = version_of(client, change.event_id)
    with unchanged(db):
        answer = change.send(client, headers=root | {"If-Match": f'"{version + 1}"'})
    assert answer.status_code == 412
    assert answer.headers["ETag"] == f'"{version}"'
    text = error_of(answer)
    assert f"at version {version}" in text
    assert not re.search("(?i)weak|proxy", text)


def test_a_list_with_one_matching_etag_is_met_whatever_else_is_in_it(house):
    client, root, todo = house
    listed = 'W/"0", "7-gzip", "VERSION", "0;br"'
    for name in ("partial return in an event", "ticket", "partly cancelled booking"):
        version = version_of(client, 7)
        headers = root | {"If-Match": listed.replace("VERSION", str(version))}
        assert todo[name].send(client, headers=headers).status_code in {200, 204}
        assert version_of(client, 7) == version + 1


def test_a_read_accepts_a_weak_etag(house):
    client, _, _ = house
    version = version_of(client, 7)
    weak = client.get("/events/7", headers={"If-None-Match": f'W/"{version}"'})
    assert (weak.status_code, weak.data) == (304, b"")
