from __future__ import annotations

import io
import logging
import string
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pythonjsonlogger.json import JsonFormatter

from stream.redact import RedactingFilter, printable, redact, scrub, secrets_of

# Credentials in capitals and special characters; the rest of the URIs is in small letters, so any
# trace of a credential shows.
NASTY = "@/?#%:&;=+!$'\"\\ äß[]|"
credential = st.text(string.ascii_uppercase + string.digits + NASTY, min_size=4, max_size=12)
REST = "cam.lan:554/live/main"
SHOWN = {f"rtsp://{REST}", f"rtsp://{REST}?***", "rtsp://***"}


@given(user=credential, password=credential)
@example(user="ADMIN", password="P@SS/W?RD#1%:")
@example(user="ADMIN", password="12/34")
@example(user="ADMIN", password="A@B.C/D@E")
@example(user="@:/", password="//@@::")
def test_no_part_of_user_or_password_is_shown(user, password):
    for uri in (
        f"rtsp://{user}:{password}@{REST}",
        f"rtsp://{quote(user, safe='')}:{quote(password, safe='')}@{REST}",
        f"rtsp://{REST}?user={user}&password={password}",
        f"rtsp://{user}:{password}@{REST}?channel=1",
    ):
        assert redact(uri) in SHOWN


# A user name with a bare colon can't be meant: all that follows it belongs to the password.
@given(user=credential.filter(lambda name: ":" not in name), password=credential)
@example(user="ADMIN", password="P@SS/W?RD#1%:")
@example(user="ADMIN", password="%41%42%43")
def test_no_form_of_a_password_stays_in_a_text(user, password):
    uri = f"rtsp://{user}:{password}@{REST}"
    encoded = quote(password, safe="")
    text = f"can't open '{uri}' ({password}, {encoded}): refused"
    assert scrub(text, secrets_of(uri)) == scrub(
        "can't open 'rtsp://***@cam.lan:554/live/main' (***, ***): refused"
    )
    assert password not in scrub(text, secrets_of(f"rtsp://{user}:{encoded}@{REST}"))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("clips/two faces.mp4", "clips/two faces.mp4"),
        ("/data/a@b.mp4", "/data/a@b.mp4"),
        ("file:///data/a@b.mp4", "file:///data/a@b.mp4"),
        ("/dev/video0", "/dev/video0"),
        ("rtsp://10.0.0.7/ch1", "rtsp://10.0.0.7/ch1"),
        ("rtsp://a:b@[fe80::1]:554/ch1", "rtsp://[fe80::1]:554/ch1"),
        ("rtsp://a:b@c@cam/ch1", "rtsp://cam/ch1"),
        ("rtsp://token@cam/ch1", "rtsp://cam/ch1"),
        ("rtsp://a:b@cam", "rtsp://cam"),
        ("rtsp://cam/user=admin&password=x&channel=1.sdp", "rtsp://cam/?***"),
        ("rtsp://cam/ch1#user:secret", "rtsp://cam/ch1?***"),
        ("rtsp://cam/@home", "rtsp://***"),
        ("rtsp://", "rtsp://***"),
        ("rtsp://bad host/x", "rtsp://***"),
        ("admin:secret@10.0.0.7/ch1", "***"),
        ("cam 1=rtsp://admin:secret@10.0.0.7/ch1", "***"),
        ("concat:a.mp4|b.mp4", "concat:***"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert redact(uri) == shown


def test_a_path_holds_no_secrets():
    assert secrets_of("/data/a@b.mp4") == frozenset()
    assert secrets_of("file:///data/a@b.mp4") == frozenset()


def test_a_password_too_short_to_search_for_is_hidden_beside_its_user():
    uri = "rtsp://admin:1@cam/ch1"
    assert scrub(f"{uri}: 11 errors in 1 s", secrets_of(uri)) == (
        "rtsp://***@cam/ch1: 11 errors in 1 s"
    )


def test_credentials_of_an_unknown_uri_are_hidden_too():
    text = "x rtsp://admin:hunter2@cam/ch1?user=admin&token=abc&n=1, http://a@b y"
    assert scrub(text) == "x rtsp://***@cam/ch1?user=***&token=***&n=1, http://***@b y"


@pytest.fixture(params=["text", "json"])
def log_lines(request):
    """A logger whose handler redacts `hunter2`, and the stream it writes to."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.addFilter(RedactingFilter(secrets_of("rtsp://admin:hunter2@cam/ch1")))
    if request.param == "json":
        handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("tests.redact.child")
    logger.addHandler(handler)
    yield logger, lines
    logger.removeHandler(handler)


def test_log_records_lose_the_secret_wherever_it_stands(log_lines):
    logger, lines = log_lines
    logger.error("pass %s and %d", "hunter2", 5)
    logger.error("no arguments: hunter2, 100%")
    logger.error("extra", extra={"uri": "rtsp://admin:hunter2@cam/ch1"}, stack_info=True)
    assert "hunter2" not in lines.getvalue()
    assert "pass *** and 5" in lines.getvalue()


def test_logged_exceptions_lose_the_secret_and_name_their_cause(log_lines):
    logger, lines = log_lines
    error = OSError("can't open rtsp://admin:hunter2@cam/ch1")
    error.__cause__ = ValueError("cause: hunter2")
    logger.error("failed", exc_info=error)
    assert "hunter2" not in lines.getvalue()
    assert "ValueError: cause: ***" in lines.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Tür 門.mp4", "Tür 門.mp4"),
        ("door\udce9.mp4", r"door\udce9.mp4"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
    ],
)
def test_what_cannot_be_written_or_steers_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    assert redact(f"/clips/{text}") == f"/clips/{shown}"


def test_log_keeps_its_lines_and_shows_a_name_of_any_bytes(caplog):
    handler = logging.StreamHandler(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    handler.addFilter(RedactingFilter())
    record = logging.LogRecord("x", logging.INFO, "", 0, "two\nlines: %s", ("\udce9\x1b[2J",), None)
    assert handler.filter(record)
    assert handler.format(record) == "two\nlines: \\udce9\\x1b[2J"
