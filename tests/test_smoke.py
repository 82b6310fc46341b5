def test_a_sale_is_in_the_file(client, saved):
    sold = client.post("/reservations", json={"partnerId": "abc-corp", "seats": 3})
    assert sold.status_code == 201
    assert saved()["event"]["availableSeats"] == 497


def test_a_server_answers(serve):
    assert serve().ask("GET", "/_health")[:2] == (200, {"ok": True})
