"""The page by HTTP: who gets in, what is served, and the control API."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
from contextlib import closing
from typing import Any

import pytest

from stream.config import PageConfig
from stream.errors import ConfigError
from stream.messages import VerdictMessage
from stream.page.access import MOST_WRONG, WITHIN_S, Limit
from stream.page.board import GRID_WIDTH
from stream.page.exposure import check_exposure
from stream.page.pictures import LivePictures
from stream.page.server import Page
from tests.stream.page.asking import events, parts
from tests.stream.running import PAUSED, STOPPED, wait_until

GUARDED = [
    *("/live", "/events", "/api/sources", "/api/sources/door", "/alerts/x/face.jpg"),
    "/alerts/x/evidence.jpg",
]
CAMERA = "rtsp://user:p4ssw0rd@127.0.0.1:9/ch1"


# --- who gets in ---


def test_nobody_sees_anything_without_the_secret(serve):
    served = serve()
    for path in GUARDED:
        assert served.ask("GET", path).status == 401, path
        assert served.ask("GET", path, authorization="Bearer wrong horse").status in (401, 429)
    answer = served.ask("GET", "/")
    assert (answer.status, answer.headers["location"]) == (303, "/login")


def test_a_login_gives_a_cookie_for_this_site_alone_and_a_forged_one_is_worth_nothing(serve):
    served = serve()
    answer = served.log_in()
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "httponly; samesite=strict" in cookie
    session = cookie.partition(";")[0]
    assert served.ask("GET", "/api/sources", cookie=session).status == 200
    name, _, value = session.partition("=")
    forged = f"{name}={value[:-4]}AAAA"
    assert served.ask("GET", "/api/sources", cookie=forged).status == 401
    gone = served.ask("POST", "/logout", cookie=session, sec_fetch_site="same-origin")
    assert "facewarden=null" in gone.headers["set-cookie"]


def test_guesses_are_limited_the_right_secret_included(serve):
    served = serve()
    said = [served.log_in("wrong").status for _ in range(MOST_WRONG)]
    assert said == [401] * (MOST_WRONG - 1) + [429]
    late = served.log_in()
    assert late.status == 429
    assert 0 < int(late.headers["retry-after"]) <= WITHIN_S
    assert served.tell("GET", "/api/sources").status == 429


def test_a_limit_forgets_after_a_while_and_knows_addresses_apart():
    now = 100.0
    limit = Limit(monotonic=lambda: now)
    for _ in range(MOST_WRONG):
        limit.wrong("10.0.0.1")
    assert limit.wait_s("10.0.0.1") == WITHIN_S
    assert limit.wait_s("10.0.0.2") == 0
    now += WITHIN_S
    assert limit.wait_s("10.0.0.1") == 0


def test_a_foreign_host_is_turned_away_whatever_it_asks(serve):
    served = serve(hosts=["page.example"])
    for path in ("/login", "/static/page.js", "/api/sources"):
        assert served.tell("GET", path, host="evil.example").status == 400
    assert served.tell("GET", "/api/sources", host="page.example").status == 200


def test_what_another_site_sends_by_a_logged_in_browser_changes_nothing(serve):
    served = serve()
    session = served.log_in().headers["set-cookie"].partition(";")[0]
    for headers in (
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ):
        answer = served.ask("DELETE", "/api/sources/door", cookie=session, **headers)
        assert answer.status == 403, headers
    # Nor through a proxy that adds the secret to whatever a browser sends.
    assert served.tell("DELETE", "/api/sources/door", sec_fetch_site="cross-site").status == 403
    ours = {"cookie": session, "origin": f"http://{served.host}"}
    assert served.ask("POST", "/api/sources/door/pause", **ours).status == 202


def test_every_answer_forbids_what_the_page_never_does(serve):
    served = serve()
    for path in ("/login", "/static/page.js", "/api/sources", "/nothing"):
        headers = served.ask("GET", path).headers
        assert "script-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"host": "192.0.2.1"}, "page.secret"),
        ({"host": "192.0.2.1", "secret": "a long secret"}, "page.certificate and page.key"),
        ({"host": "0.0.0.0", "insecure": True}, "page.hosts"),
        ({"host": "camera-room"}, "page.secret"),
    ],
)
def test_an_address_that_others_reach_needs_protection(options, missing):
    with pytest.raises(ConfigError, match=f"other machines can reach.*{missing}"):
        check_exposure(PageConfig.model_validate(options))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_an_address_of_this_machine_needs_none(host):
    check_exposure(PageConfig(host=host))


def test_an_address_that_is_taken_is_named(serve, tiny_engine):
    served = serve()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = PageConfig(port=other.getsockname()[1])
        with pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1"):
            Page(taken, served.board, served.run.control, LivePictures(served.board, tiny_engine))


def test_a_certificate_makes_it_https_and_its_cookie_stays_there(serve, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl for certificates")
    pair = [tmp_path / "page.pem", tmp_path / "page.key"]
    make = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    made = ["openssl", *make.split(), "subjectAltName=DNS:localhost"]
    subprocess.run([*made, "-out", pair[0], "-keyout", pair[1]], capture_output=True, check=True)
    served = serve(certificate=pair[0], key=pair[1])
    assert served.page.url.startswith("https://")
    port = int(served.page.url.rpartition(":")[2])
    trust = ssl.create_default_context(cafile=pair[0])
    with closing(http.client.HTTPSConnection("localhost", port, context=trust)) as connection:
        form = {"content-type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", "secret=correct+horse+battery", form)
        answer = connection.getresponse()
    assert (answer.status, "; secure" in answer.headers["set-cookie"]) == (303, True)


def test_a_key_of_another_certificate_is_refused(serve, tiny_engine, tmp_path):
    served = serve()
    for name in ("page.pem", "page.key"):
        (tmp_path / name).write_text("no PEM")
    config = PageConfig(port=0, certificate=tmp_path / "page.pem", key=tmp_path / "page.key")
    with pytest.raises(ConfigError, match=r"page\.certificate and page\.key can't be used"):
        Page(config, served.board, served.run.control, LivePictures(served.board, tiny_engine))


# --- what is served ---


def test_the_live_stream_brings_the_frames_that_were_scored_with_their_faces(serve):
    served = serve()
    with served.asked("GET", "/live", authorization="Bearer correct horse battery") as answer:
        shown = []
        for header, jpeg in parts(answer):
            assert jpeg.startswith(b"\xff\xd8")
            shown.append(header)
            if {face["state"] for face in header["faces"]} == {"attack", "bona_fide"}:
                break
    scored = {(s.session, round(s.pts_s, 3)) for s in served.run.stamps}
    assert {(h["session"], h["pts_s"]) for h in shown} <= scored
    (attack,) = (face for face in header["faces"] if face["state"] == "attack")
    assert attack["p"] > 0.6
    assert 200 < attack["box"][0] < attack["box"][2] < 400  # the dark face, on the right
    assert attack["track"] in {m.track.id for m in served.run.scores("door")}


def test_frames_are_kept_only_while_somebody_looks(serve):
    served = serve()
    served.run.wait_for_frame("door")
    assert served.board.frames_after(0, (), GRID_WIDTH) == []
    with served.board.viewed((), GRID_WIDTH):
        wait_until(lambda: served.board.frames_after(0, (), GRID_WIDTH) != [])
    assert served.board.frames_after(0, (), GRID_WIDTH) == []


def test_news_go_on_after_the_last_that_was_heard(serve):
    served = serve()
    known = {"authorization": "Bearer correct horse battery"}
    with served.asked("GET", "/events", **known) as answer:
        heard = []
        for event in events(answer):
            heard.append(event)
            if sum(kind == "alert" for kind, *_ in heard) == 2:
                break
    kinds = {kind for kind, *_ in heard}
    assert {"status", "score", "alert"} <= kinds
    with served.asked("GET", "/events", last_event_id=heard[-1][1], **known) as answer:
        _, number, _ = next(events(answer))
    assert int(number.partition("-")[2]) > int(heard[-1][1].partition("-")[2])
    with served.asked("GET", "/events", last_event_id="ffffffff-999", **known) as answer:
        first = next(events(answer))  # of another run: all is told
    assert first[1] == heard[0][1] or first[0] == "status"


def test_the_face_behind_an_alert_is_served_and_the_map_of_its_evidence(serve):
    served = serve()
    served.run.wait_for(lambda: any(isinstance(m, VerdictMessage) for m in served.run.messages))
    alert = next(m for m in served.run.messages if isinstance(m, VerdictMessage))
    wait_until(lambda: served.board.look_of(alert.event.id) is not None)
    pictures = []
    for name in ("face", "evidence"):
        answer = served.tell("GET", f"/alerts/{alert.event.id}/{name}.jpg")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        pictures.append(answer.text)
    assert pictures[0] != pictures[1]
    assert served.tell("GET", "/alerts/no-such/face.jpg").status == 404


def test_more_viewers_than_allowed_are_asked_to_wait(serve):
    served = serve(viewers=1)
    known = {"authorization": "Bearer correct horse battery"}
    with served.asked("GET", "/live", **known) as first:
        next(parts(first))
        answer = served.ask("GET", "/live", **known)
    assert (answer.status, "page.viewers" in answer.json["error"]) == (503, True)


# --- the control API ---


def test_cameras_are_listed_added_changed_paused_and_removed_without_their_passwords(serve):
    served = serve()
    run = served.run
    added = served.tell("POST", "/api/sources", {"id": "yard", "uri": CAMERA})
    assert (added.status, added.json["uri"]) == (201, "rtsp://127.0.0.1:9/ch1")
    run.wait_for(lambda: run.changes("yard"))
    listed = served.tell("GET", "/api/sources").json["sources"]
    assert [(each["id"], each["uri"][:4]) for each in listed] == [
        ("door", listed[0]["uri"][:4]),
        ("yard", "rtsp"),
    ]
    changed = served.tell("PATCH", "/api/sources/yard", {"retry_max_s": 3})
    assert (changed.status, changed.json["retry_max_s"]) == (200, 3)
    (yard,) = (v.config for v in run.control.sources() if v.config.id == "yard")
    assert yard.uri.get_secret_value() == CAMERA
    assert served.tell("POST", "/api/sources/yard/pause").status == 202
    run.wait_for(lambda: PAUSED in run.changes("yard"))
    shown = served.tell("GET", "/api/sources/yard")
    assert shown.json["status"]["state"] == "paused"
    assert served.tell("POST", "/api/sources/yard/resume").status == 202
    assert served.tell("DELETE", "/api/sources/yard").status == 204
    run.wait_for(lambda: STOPPED in run.changes("yard"))
    assert served.tell("GET", "/api/sources/yard").status == 404
    for answer in (added, changed, shown):
        assert "p4ssw0rd" not in answer.text
    assert CAMERA in run.hidden


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/api/sources", {"id": "door", "uri": CAMERA}, 409, "one of that name"),
    ("POST", "/api/sources", {"id": "b"}, 422, "expected id and uri"),
    ("POST", "/api/sources", {"id": "b", "uri": "/etc/passwd"}, 422, "rtsp://"),
    ("POST", "/api/sources", {"id": "b", "uri": "http://10.0.0.1/"}, 422, "rtsp://"),
    ("POST", "/api/sources", {"id": "b", "uri": "/dev/video0"}, 422, "rtsp://"),
    (
        *("POST", "/api/sources", {"id": "b", "uri": CAMERA, "allow_http": True}, 422),
        "only the configuration file",
    ),
    (
        *("POST", "/api/sources", {"id": "b", "uri": CAMERA, "learned": __file__}, 422),
        "only the configuration file",
    ),
    ("POST", "/api/sources", {"id": "b", "uri": CAMERA, "retry": 1}, 422, "retry_max_s"),
    ("POST", "/api/sources", {"id": "b", "uri": CAMERA, "stall_s": "x"}, 422, "stall_s"),
    ("POST", "/api/sources", {"id": "../b", "uri": CAMERA}, 422, "id"),
    ("PATCH", "/api/sources/door", {"uri": "rtsp://***@x/"}, 422, "as it is shown"),
    ("PATCH", "/api/sources/door", {"id": "b"}, 422, "can't be changed"),
    ("PATCH", "/api/sources/b", {"loop": True}, 404, "none of that name"),
    ("POST", "/api/sources/b/pause", None, 404, "none of that name"),
    ("POST", "/api/sources", "{", 415, "application/json"),
    ("PUT", "/api/sources/door", {}, 405, "Method Not Allowed"),
]


def test_what_can_not_be_done_is_answered_with_the_reason(serve):
    served = serve()
    for method, path, body, status, why in REFUSED:
        answer = served.tell(method, path, body)
        assert (answer.status, "p4ssw0rd" in answer.text) == (status, False), (path, body)
        assert why in answer.json["error"], (path, body)
    large = served.tell("POST", "/api/sources", {"id": "b", "uri": "rtsp://" + "x" * 70_000})
    assert large.status == 413
    assert [view.config.id for view in served.run.control.sources()] == ["door"]
