"""Each way a hub fails: one diagnosis, what to do, and no token anywhere. The real client, a hub on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import FIRST, SIGNATURE, TOKEN, FakeHub, Fault, model_files, noise, sha256

from pillm.core import events as core_events
from pillm.core.errors import MissingError, NetworkError, PillmError, UsageError
from pillm.core.events import Event, Log
from pillm.models import transfer
from pillm.models.refs import identity, parse, resolve

API, STORAGE = "/api/models/", "/blobs/"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/model is restricted"}
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", made.append)
    return made


def messages(told: list[Event]) -> str:
    return "\n".join(event.message for event in told if isinstance(event, Log))


@pytest.mark.parametrize(
    ("fault", "token", "kind", "words", "advice"),
    [
        (Fault(API, status=401, headers=BAD_TOKEN), True, NetworkError, "refuses your token", "/settings/tokens"),
        (Fault("/resolve/", status=401, headers=GATED), False, NetworkError, "no token was sent", "/org/model"),
        (Fault("/resolve/", status=403, headers=GATED), True, NetworkError, "is gated", "accept its terms at"),
        (Fault(API, status=403), True, NetworkError, "does not let you read", "fine-grained token"),
        (Fault(API, status=401), False, MissingError, "no such model", "hf auth login"),
        (Fault(API, status=404), True, MissingError, "or it is private", "read access"),
        (Fault("/resolve/", status=404, headers={"X-Error-Code": "EntryNotFound"}), False, MissingError, "lists a file", "revision"),
        (Fault(API, status=429), False, NetworkError, "no more requests", "in a few minutes"),
        (Fault(STORAGE, status=429, headers={"Retry-After": "3600"}), False, NetworkError, "no more requests", "in 3,600 s"),
        (Fault(API, status=429, headers={"ratelimit": '"api";r=0;t=290'}), False, NetworkError, "429", "in 290 s"),
        (Fault(API, status=503), False, NetworkError, "problem of its own (503)", "again later"),
        (Fault(STORAGE, status=500), False, NetworkError, "problem of its own (500)", "is kept"),
        (Fault(API, status=418), False, NetworkError, "answered 418", "HF_ENDPOINT"),
        (Fault(API, status=200, body=b"<html>Please log in</html>"), False, NetworkError, "not answer as a hub", "portal"),
        (Fault(API, status=200, body=b'{"id": "org/model"}'), False, NetworkError, "not answer as a hub", "HF_ENDPOINT"),
        (Fault(STORAGE, cut_after=0), False, NetworkError, "cut again and again", "goes on from where it was"),
        (Fault(STORAGE, wrong=True), False, NetworkError, "checksum mismatch", "proxy or a mirror"),
    ],
    ids=lambda value: f"{value.status or 'cut'}-{value.where}" if isinstance(value, Fault) else None,
)  # fmt: skip
def test_a_failure_has_one_diagnosis_and_says_what_to_do(
    hub, told, pauses, monkeypatch, fault, token, kind, words, advice
):
    if token:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(fault)
    with pytest.raises(kind) as raised:
        resolve("hf:org/model", told.append)
    assert words in raised.value.message
    assert advice in raised.value.hint
    assert raised.value.exit_code == (3 if kind is MissingError else 4)
    assert sum(pauses) < 200
    assert len(hub.requests) < 60
    assert identity("hf:org/model") in ("hf:org/model@main", f"hf:org/model@{FIRST}")


def test_a_token_is_checked_by_the_hub_itself(hub, told, monkeypatch):
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    with pytest.raises(NetworkError, match="refuses your token"):
        resolve("hf:org/model", told.append)


def test_a_revision_that_is_not_there_lists_those_that_are(hub, told):
    with pytest.raises(MissingError) as raised:
        resolve("hf:org/model@v7", told.append)
    assert "'v7'" in raised.value.message
    assert "main, dev" in raised.value.hint


def test_a_revision_is_still_diagnosed_when_the_list_of_revisions_fails(hub, told):
    hub.faults.append(Fault("/refs", status=500))
    with pytest.raises(MissingError) as raised:
        resolve("hf:org/model@v7", told.append)
    assert "/org/model/tree/main" in raised.value.hint


def test_too_many_requests_are_waited_out_as_long_as_the_hub_asks(hub, told, pauses):
    hub.faults.append(Fault(API, times=2, status=429, headers={"Retry-After": "17"}))
    resolve("hf:org/model", told.append)
    assert pauses == [17, 17]
    assert "too many requests; trying again in 17 s" in messages(told)


def test_a_hub_that_recovers_is_not_an_error(hub, told, pauses):
    hub.faults += [Fault(API, times=2, status=503), Fault(STORAGE, times=3, status=502)]
    folder = resolve("hf:org/model", told.append)
    assert (folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert len(pauses) == 5


def test_a_hub_that_is_down_leaves_the_cached_copy_in_use(hub, told, pauses):
    before = resolve("hf:org/model", told.append)
    hub.faults.append(Fault(API, status=503))
    assert resolve("hf:org/model", told.append) == before
    assert "using what was fetched before" in messages(told)


def test_a_refusal_is_not_hidden_by_the_cached_copy(hub, told):
    resolve("hf:org/model", told.append)
    hub.faults.append(Fault(API, status=401, headers=BAD_TOKEN))
    with pytest.raises(PillmError):
        resolve("hf:org/model", told.append)


@pytest.mark.parametrize("no_range", [False, True], ids=["ranges", "no ranges"])
def test_a_connection_that_is_cut_many_times_still_brings_the_whole_file(hub, told, pauses, no_range):
    weights = noise("cut", 900_000)
    hub.repos["org/model"].commits[FIRST]["model.safetensors"] = weights
    # More cuts than tries are allowed: only those count that brought nothing.
    hub.faults += [Fault(sha256(weights), times=8, cut_after=100_000)]
    if no_range:
        hub.faults = [
            Fault(sha256(weights), times=1, cut_after=500_000),
            Fault(sha256(weights), times=1, no_range=True),
        ]
    folder = resolve("hf:org/model", told.append)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert "the connection was cut; trying again" in messages(told)
    starts = [request.headers.get("range") for request in hub.requests if request.storage]
    assert all(start for start in starts[1:])
    done = [event.done for event in told if isinstance(event, core_events.Progress)]
    total = [event.total for event in told if isinstance(event, core_events.Progress)][-1]
    assert done[-1] == total
    assert max(done) == total


def test_wrong_bytes_are_fetched_once_more_and_never_kept(hub, told, tmp_path):
    hub.faults.append(Fault(STORAGE, times=1, wrong=True))
    folder = resolve("hf:org/model", told.append)
    assert (folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert "the checksum is wrong" in messages(told)

    hub.repos["org/model"].commits[FIRST]["model.safetensors"] = other = noise("other", 1000)
    hub.faults.append(Fault(STORAGE, wrong=True))
    with pytest.raises(NetworkError, match="checksum mismatch"):
        resolve("hf:org/model", told.append)
    assert not list((tmp_path / "hf").rglob(f"blobs/{sha256(other)}*"))


def test_a_part_that_is_not_the_files_beginning_is_noticed(hub, told, tmp_path):
    weights = model_files()["model.safetensors"]
    blobs = tmp_path / "hf" / "hub" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(weights)}.pillm-partial").write_bytes(noise("something else", 1000))
    folder = resolve("hf:org/model", told.append)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_server_that_falls_silent_is_given_up_on(hub, told, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults.append(Fault(STORAGE, stall_after=0))
    with pytest.raises(NetworkError) as raised:
        resolve("hf:org/model", told.append)
    assert "did not answer" in raised.value.message
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in raised.value.hint


def test_a_host_that_is_not_there_is_told_from_one_that_refuses(hub, told, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(NetworkError, match="the connection is refused"):
        resolve("hf:org/model", told.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    with pytest.raises(NetworkError, match="its name is not known"):
        resolve("hf:org/model", told.append)
    monkeypatch.setattr(constants, "ENDPOINT", "no-such-scheme://host")
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        resolve("hf:org/model", told.append)


def test_a_certificate_that_is_not_trusted_is_named_as_the_reason(hub, told, monkeypatch):
    import httpx2
    from huggingface_hub import HfApi

    def refuse(*args, **kwargs):
        raise httpx2.ConnectError(
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1006)"
        )

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(NetworkError) as raised:
        resolve("hf:org/model", told.append)
    assert "certificate" in raised.value.message
    assert "SSL_CERT_FILE" in raised.value.hint


@pytest.mark.parametrize("token", ["hf_with_a\0_in_it", "hf_ünreadable_but_long"])
def test_a_token_that_cannot_be_sent_is_said_without_showing_it(hub, told, token):
    from huggingface_hub import constants

    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
    Path(constants.HF_TOKEN_PATH).write_text(token, encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        resolve("hf:org/model", told.append)
    assert "characters that no token has" in raised.value.message
    assert token not in raised.value.message + raised.value.hint


def everything_of(error: BaseException | None) -> Iterator[str]:
    """All text of an error and of those below it, as a log of a crash would show it."""
    if error is not None:
        yield "".join(traceback.format_exception(error))
        yield repr(error.args) + getattr(error, "hint", "")
        yield from everything_of(error.__cause__)
        yield from everything_of(error.__context__)


TELLTALES = [
    Fault(API, status=401, headers={"X-Error-Message": f"Invalid credentials: {TOKEN}"}, body=TOKEN.encode()),
    Fault(API, status=403, headers={"X-Error-Message": f"Bearer {TOKEN} may not"}, body=TOKEN.encode()),
    Fault(API, status=418, headers={"X-Error-Message": f"token={TOKEN}"}),
    Fault(API, status=503, headers={"X-HF-Warning": f"Auth; your token {TOKEN} expires"}),
    Fault(API, status=404, headers={"X-Error-Code": "RevisionNotFound"}),
    Fault("/resolve/", status=403, headers=GATED),
    Fault(STORAGE, status=403),
    Fault(STORAGE, status=500),
    Fault(STORAGE, cut_after=10),
    Fault(STORAGE, wrong=True),
]


@pytest.mark.parametrize("fault", TELLTALES, ids=lambda fault: f"{fault.status or 'cut'}-{fault.where}")
def test_no_token_and_no_signed_link_is_shown_whatever_fails(
    hub, told, pauses, monkeypatch, capfd, caplog, tmp_path, fault
):
    from huggingface_hub import constants

    caplog.set_level(0)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    fault.times = -1
    hub.faults.append(fault)
    with pytest.raises(PillmError) as raised:
        resolve("hf:org/model", told.append)
    shown = [raised.value.message, raised.value.hint, *(core_events.encode(event).decode() for event in told)]
    captured = capfd.readouterr()
    shown += [captured.out, captured.err, identity("hf:org/model")]
    shown += [path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*.json")]
    for secret in (TOKEN, SIGNATURE):
        assert secret not in "\n".join(shown)
    # Below our error lie the client's; what they say of the server's own words is not shown to anyone, but
    # nothing there may hold the token that we sent.
    if TOKEN.encode() not in fault.body and not any(TOKEN in value for value in fault.headers.values()):
        assert TOKEN not in "\n".join(everything_of(raised.value))


def test_no_token_is_written_by_a_process_that_downloads(hub, tmp_path):
    hub.token = TOKEN
    code = "import sys; from pillm.models.refs import resolve; print(resolve('hf:org/model', print))"
    environment = {**os.environ, **fake_hub.environment(hub, tmp_path), "HF_TOKEN": TOKEN, "HF_DEBUG": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "model.safetensors" in "\n".join(path.name for path in tmp_path.rglob("*"))
    assert TOKEN not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{TOKEN}@host:8080/v1?key={TOKEN}",
        f"hf:https://{TOKEN}@hub/org/model",
        f"hf://org:{TOKEN}@x y",
        f"ftp://user:{TOKEN}@host/model",
        f"pkg:https://user:{TOKEN}@host",
    ],
)
def test_a_secret_typed_into_a_reference_is_not_repeated(hub, told, text):
    with pytest.raises(UsageError) as raised:
        resolve(text, told.append)
    assert TOKEN not in raised.value.message + raised.value.hint + repr(told)


def test_a_password_in_the_hubs_address_is_not_shown(hub, told, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http://", "http://user:geheimnis@"))
    hub.faults.append(Fault("/resolve/", status=403, headers=GATED))
    with pytest.raises(NetworkError) as raised:
        resolve("hf:org/model", told.append)
    assert "/org/model" in raised.value.hint
    assert "geheimnis" not in raised.value.message + raised.value.hint + repr(told)
    assert str(parse("http://user:geheimnis@host:8080/v1/")) == "http://host:8080/v1"
