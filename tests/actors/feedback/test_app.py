"""The page's API on a real server: what raters and administrators do, and what nobody may."""

from __future__ import annotations

import io
import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
from PIL import Image

from pipeline.feedback.records import Candidate, JudgementKind, RaterRole, Task
from pipeline.records import MediaKind, Message
from tests.actors.feedback.conftest import Client, Enter, served
from tests.feedback.office import MakeItem, Office


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 8000, format="WAV")
    return file.getvalue()


def test_a_rater_is_shown_an_item_with_its_media_and_his_judgement_is_counted(
    office: Office, enter: Enter, make_item: MakeItem
) -> None:
    media = (office.store.keep(MediaKind.IMAGE, png()), office.store.keep(MediaKind.AUDIO, wav()))
    office.store.offer([make_item(messages=(Message("user", "<image>What is this? <audio>"),), media=media)])
    rater = enter()
    shown = rater.next()
    (message,) = shown["messages"]
    assert [*message["parts"][0]] == ["medium"] and message["parts"][1] == {"text": "What is this? "}
    assert sorted(each["text"] for each in shown["completions"]) == ["a0", "a1"]
    picture = rater.get(message["parts"][0]["medium"]["url"])
    assert (picture.content, picture.headers["content-type"]) == (png(), "image/png")
    assert picture.headers["x-content-type-options"] == "nosniff"
    sound = rater.session.get(rater.address + message["parts"][2]["medium"]["url"], headers={"Range": "bytes=0-3"})
    assert (sound.status_code, sound.content, sound.headers["content-type"]) == (206, b"RIFF", "audio/wav")
    assert rater.judge(shown, 1).json() == {"num_judged": 1, "num_left": 0}
    assert rater.judge(shown, 1).json() == {"num_judged": 1, "num_left": 0}
    (judged,) = office.store.judged()
    (said,) = judged.judgements
    assert judged.item.candidates[said.content["chosen"]].text == shown["completions"][1]["text"]
    assert rater.next() is None
    again = rater.post("/api/undo", {"key": "undo-undo"}).json()
    assert again["presentation"] == shown and again["num_left"] == 1
    assert list(office.store.judged()) == []


def test_an_administrator_sees_agreement_and_whom_gold_items_set_aside(
    office: Office, enter: Enter, make_item: MakeItem
) -> None:
    office.use(gold_share=1.0, min_gold_judgements=3, min_gold_accuracy=0.6)
    items = [make_item(str(number), num_raters=2) for number in range(6)]
    gold = [make_item(f"gold{number}", gold={"chosen": 0}) for number in range(3)]
    office.store.offer([*items, *gold])
    with served(office) as address:
        good, bad, admin = (
            replace(enter(role), address=address) for role in (RaterRole.RATER, RaterRole.RATER, RaterRole.ADMIN)
        )
        for client, best in ((good, "0"), (bad, "1")):
            while (shown := client.next()) is not None:
                texts = [each["text"] for each in shown["completions"]]
                choice = next(place for place, text in enumerate(texts) if text.endswith(best))
                assert client.judge(shown, choice).status_code == 200
        found = admin.get("/api/admin/summary").json()
        lines = admin.get("/api/admin/export.jsonl").text.splitlines()
    by_name = {each["name"]: each for each in found["raters"]}
    assert [by_name[f"rater{number}"]["gold_accuracy"] for number in (0, 1, 2)] == [1.0, 0.0, None]
    assert [by_name[f"rater{number}"]["is_set_aside"] for number in (0, 1, 2)] == [False, True, False]
    assert "0% of 3" in by_name["rater1"]["reason"]
    assert found["agreement"]["num_items"] == 9 and found["agreement"]["alpha"] < 0
    assert found["items"] == {"num": 9, "done": 0, "waiting": 6, "gold": 3}
    assert found["judgements"]["by_kind"] == {"pair": 18}
    assert len(lines) == 9 and sum(len(json.loads(line)["judgements"]) for line in lines) == 18


def test_events_are_kept_with_the_place_of_the_completion_in_its_item_and_on_the_page(
    office: Office, enter: Enter, make_item: MakeItem
) -> None:
    office.store.offer([make_item()])
    rater = enter()
    shown = rater.next()
    event = {"key": "event-one", "presentation": shown["id"], "kind": "copied", "place": 1, "value": 1.0}
    for _ in range(2):
        assert rater.post("/api/events", {"events": [event]}).status_code == 204
    with office.store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT kind, place, shown_place, value FROM events").all()
    place = int(shown["completions"][1]["text"][-1])
    assert [tuple(row) for row in rows] == [("copied", place, 1, 1.0)]
    assert rater.post("/api/events", {"events": [{**event, "key": "event-two", "place": 7}]}).status_code == 422


def test_corrections_with_scripts_and_sql_come_back_as_they_were_written(
    office: Office, enter: Enter, make_item: MakeItem
) -> None:
    evil = "<script>alert(1)</script>'; DROP TABLE items; -- \u202e مرحبا 你好"
    office.store.offer([make_item(candidates=(Candidate(evil), Candidate("b")))])
    rater = enter()
    shown = rater.next()
    assert evil in [each["text"] for each in shown["completions"]]
    said = {"key": "correction", "kind": "correction", "content": {"place": 0, "text": evil}}
    assert rater.post("/api/judgements", {**said, "presentation": shown["id"]}).status_code == 200
    (judged,) = office.store.judged()
    assert judged.judgements[0].content["text"] == evil and judged.judgements[0].kind is JudgementKind.CORRECTION


# What nobody may.

READS = ["/api/me", "/api/next", f"/api/media/{'0' * 64}", "/api/admin/summary", "/api/admin/export.jsonl"]
WRITES = ["/api/judgements", "/api/undo", "/api/events", "/api/logout", "/api/admin/invite", "/api/admin/revoke"]


def test_nothing_is_read_or_written_without_a_session(address: str, office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    nobody = Client(address, requests.Session(), "made-up")
    assert {nobody.get(path).status_code for path in READS} == {401}
    assert {nobody.post(path).status_code for path in WRITES} <= {401, 422}
    forged = Client(address, requests.Session(), "made-up")
    forged.session.cookies.set("session", "made-up")
    assert {forged.get(path).status_code for path in READS} == {401}
    assert list(office.store.judged()) == []


def test_an_invitation_that_has_expired_was_revoked_or_is_unknown_opens_nothing(address: str, office: Office) -> None:
    old = office.register.invite("old", RaterRole.RATER, days=1)
    revoked = office.register.invite("revoked", RaterRole.RATER, days=30)
    office.register.revoke("revoked")
    office.clock.now += 2 * 86400
    for token in (old, revoked, "unknown", ""):
        assert requests.post(address + "/api/login", json={"token": token}, timeout=20).status_code == 401


def test_a_session_ends_with_log_out_with_time_and_with_revocation(office: Office, enter: Enter) -> None:
    out, late, revoked = enter(), enter(), enter()
    cookie = out.session.cookies.get("session")
    assert out.post("/api/logout").status_code == 204
    replayed = Client(out.address, requests.Session(), out.csrf)
    replayed.session.cookies.set("session", cookie)
    assert replayed.get("/api/me").status_code == 401
    office.register.revoke(revoked.get("/api/me").json()["rater"])
    assert revoked.get("/api/next").status_code == 401
    assert late.get("/api/me").status_code == 200
    office.clock.now += 3601
    assert late.get("/api/me").status_code == 401


def test_another_raters_item_and_media_are_not_found(office: Office, enter: Enter, make_item: MakeItem) -> None:
    picture = office.store.keep(MediaKind.IMAGE, png())
    office.store.offer([make_item(messages=(Message("user", "<image>?"),), media=(picture,))])
    owner, other = enter(), enter()
    shown = owner.next()
    assert other.judge(shown).status_code == 404
    assert other.get(f"/api/media/{picture.key}").status_code == 404
    assert owner.get(f"/api/media/{picture.key}").status_code == 200
    assert enter(RaterRole.ADMIN).get(f"/api/media/{picture.key}").status_code == 200


def test_what_does_not_come_from_the_page_is_refused(office: Office, enter: Enter, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    rater, other = enter(), enter()
    shown = rater.next()
    for token in ("", other.csrf, "é"):
        rater_csrf = replace(rater, csrf=token) if token.isascii() else replace(rater, csrf="%C3%A9")
        assert rater_csrf.judge(shown).status_code == 403
    form = rater.session.post(rater.address + "/api/judgements", data={"key": "x"}, timeout=20)
    assert form.status_code in (403, 422)
    cookie = rater.session.post(
        rater.address + "/api/login",
        json={"token": office.register.invite("cookie", RaterRole.RATER, days=1)},
        timeout=20,
    ).headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert list(office.store.judged()) == []


def test_raters_neither_administer_nor_give_rewards(office: Office, enter: Enter, make_item: MakeItem) -> None:
    office.store.offer([make_item(task=Task.PAIR)])
    rater = enter(RaterRole.EXPERT)
    assert rater.get("/api/admin/summary").status_code == 403
    assert rater.get("/api/admin/export.jsonl").status_code == 403
    assert rater.post("/api/admin/invite", {"name": "friend"}).status_code == 403
    assert rater.post("/api/admin/revoke", {"name": "rater0"}).status_code == 403
    admin = enter(RaterRole.ADMIN)
    assert admin.post("/api/admin/invite", {"name": "boss", "role": "admin"}).status_code == 422
    token = admin.post("/api/admin/invite", {"name": "friend"}).json()["token"]
    assert requests.post(rater.address + "/api/login", json={"token": token}, timeout=20).json()["rater"] == "friend"
    plain, shown = enter(), rater.next()
    reward: dict[str, Any] = {"kind": "reward", "content": {"place": 0, "value": 1.5}}
    assert rater.judge(shown, **reward).status_code == 200
    assert rater.judge(shown, key="a-pair-key").status_code == 200
    office.store.offer([make_item("another")])
    assert plain.judge(plain.next(), **reward).status_code == 422


@pytest.mark.parametrize(
    "path",
    ["/api/media/..%2f..%2fstore.sqlite", "/api/media/../../store.sqlite", "/page/..%2fapp.py", "/page/../app.py"],
)
def test_no_path_leads_out(address: str, enter: Enter, path: str) -> None:
    admin = enter(RaterRole.ADMIN)
    prepared = requests.Request("GET", address).prepare()
    prepared.url = address + path  # As it is: requests would tidy it up.
    for name, value in admin.session.cookies.items():
        prepared.headers["Cookie"] = f"{name}={value}"
    found = admin.session.send(prepared, timeout=20)
    assert found.status_code == 404 and b"SQLite" not in found.content and b"import" not in found.content


def test_a_body_that_is_too_large_is_refused_and_so_is_one_that_does_not_come(
    office: Office, enter: Enter, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.store.offer([make_item()])
    rater = enter()
    shown = rater.next()
    assert rater.judge(shown, key="k" * 200_000).status_code == 413
    assert rater.judge(shown, key="k" * 65).status_code == 422
    monkeypatch.setattr("actors.feedback.limits.BODY_S", 0.3)
    host, port = rater.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST /api/undo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50\r\n\r\n".encode())
        started = time.monotonic()
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0] + b" "
        assert time.monotonic() - started < 10


def test_another_host_name_is_refused(enter: Enter) -> None:
    rater = enter()
    found = requests.get(rater.address + "/", headers={"Host": "evil.example"}, timeout=20)
    assert found.status_code == 421
    assert requests.get(rater.address + "/", timeout=20).status_code == 200


def test_who_asks_too_often_waits(office: Office, enter: Enter) -> None:
    office.use(max_requests_a_minute=5)
    with served(office) as address:
        hasty, calm = (replace(enter(), address=address) for _ in range(2))
        statuses = [hasty.get("/api/me").status_code for _ in range(7)]
        assert statuses[:5] == [200] * 5 and statuses[-1] == 429
        assert int(hasty.get("/api/me").headers["retry-after"]) >= 1
        assert calm.get("/api/me").status_code == 200
        # Cookies that are made up do not let anybody try invitations faster.
        tries = [
            requests.post(f"{address}/api/login", json={"token": "x"}, cookies={"session": f"{number}"}, timeout=20)
            for number in range(7)
        ]
        assert tries[0].status_code == 401 and tries[-1].status_code == 429


@pytest.mark.parametrize("data", [b"<html><script>", b"<svg onload=alert(1)>", b"MZ\x90", b""])
def test_a_medium_that_lies_about_its_kind_is_not_kept(office: Office, data: bytes) -> None:
    for kind in MediaKind:
        with pytest.raises(ValueError, match="that a browser shows"):
            office.store.keep(kind, data)
    with pytest.raises(ValueError, match="no audio"):
        office.store.keep(MediaKind.AUDIO, png())


def test_every_answer_keeps_scripts_and_frames_out(enter: Enter) -> None:
    rater = enter()
    for path in ("/", "/api/me", "/api/none"):
        headers = rater.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_a_rater_who_is_forgotten_leaves_his_judgements_as_nobodys(
    office: Office, enter: Enter, make_item: MakeItem, tmp_path: Path
) -> None:
    office.store.offer([make_item("a"), make_item("b")])
    rater = enter()
    name = rater.get("/api/me").json()["rater"]
    rater.judge(rater.next())
    office.register.forget(name)
    assert rater.get("/api/me").status_code == 401
    (judged,) = office.store.judged()
    assert judged.judgements[0].rater is None
    assert not any(name in (who or "") or name in detail for _, who, _, detail in office.register.audit())
    dump = b"".join(path.read_bytes() for path in tmp_path.glob("store.sqlite*"))
    assert name.encode() not in dump
