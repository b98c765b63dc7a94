"""Each way a hub can fail, as one plain diagnosis with what to do about it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    DeviceCodeError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
)
from huggingface_hub.utils import build_hf_headers

from pillm.core.errors import MissingError, NetworkError, PillmError, UsageError
from pillm.models.redact import redact
from pillm.models.transfer import is_certificate, ordered_pause


class Unreachable(NetworkError):
    """No usable answer came: a cached copy may serve instead."""


@contextlib.contextmanager
def diagnosing(repo: str, revision: str = "", *, token: bool = False) -> Iterator[None]:
    """Turn what the client raises into a PillmError about `repo` at `revision`; `token` says whether one was sent."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _answered(error, repo, revision, token) from error
    except OfflineModeIsEnabled as error:
        raise MissingError(f"hf:{repo} is not in the cache, and HF_HUB_OFFLINE is set", OFFLINE_HINT) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _unanswered(error) from error
    except HFValidationError as error:
        raise UsageError(f"hf:{repo}: {redact(str(error))}", "write hf:organisation/name") from error
    except (LocalTokenNotFoundError, OIDCError, DeviceCodeError) as error:
        raise NetworkError(
            f"the stored login cannot be used: {redact(str(error))}", "log in again: hf auth login"
        ) from error
    except UnicodeEncodeError as error:
        raise _bad_token() from error
    except (ValueError, KeyError, TypeError) as error:
        # json.JSONDecodeError is a ValueError: a page came where the hub's data should.
        raise Unreachable(
            f"{host()} does not answer as a hub does",
            "a captive portal or a proxy may be in the way: open the address in a browser; check HF_ENDPOINT",
        ) from error


OFFLINE_HINT = "unset HF_HUB_OFFLINE and run the same command once with a network, or give a local folder"


def host() -> str:
    """The hub's host, without whatever else its address holds."""
    return urlsplit(constants.ENDPOINT).hostname or "the hub"


def page(repo: str) -> str:
    """The repository's page, for a person to open."""
    return redact(f"{constants.ENDPOINT}/{repo}")


def _answered(error: HfHubHTTPError, repo: str, revision: str, token: bool) -> PillmError:
    status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
    said = error.response.headers.get("X-Error-Message", "")
    if code == "GatedRepo":
        return _gated(repo, token)
    if status == 401 and token and code != "RepoNotFound":
        return NetworkError(
            f"{host()} refuses your token (401)",
            f"make a new one at {redact(constants.ENDPOINT)}/settings/tokens and run: hf auth login"
            " (HF_TOKEN, if set, goes before a stored login; a public model needs no token)",
        )
    if code == "RevisionNotFound":
        return MissingError(f"hf:{repo} has no branch, tag or commit {revision!r}", _revisions(repo))
    if code == "EntryNotFound":
        return MissingError(
            f"hf:{repo}@{revision}: {host()} lists a file that it does not have",
            f"look at {page(repo)}/tree/{revision}, or choose another revision",
        )
    if status in (401, 404):
        return MissingError(
            f"hf:{repo}: there is no such model on {host()}, or it is private",
            "check the spelling (hf:organisation/name)"
            + (
                "; if it is private, your token needs read access to it"
                if token
                else "; if it is private: hf auth login"
            ),
        )
    if status == 403:
        words = f": {redact(said)}" if said else ""
        return NetworkError(
            f"{host()} does not let you read hf:{repo} (403){words}",
            f"look at {page(repo)}; a fine-grained token needs read access to this repository",
        )
    if status == 429:
        wait = ordered_pause(error)
        when = f"in {wait:,.0f} s" if wait else "in a few minutes"
        more = "" if token else "; logged in (hf auth login) you have a higher limit"
        return Unreachable(
            f"{host()} answers no more requests for now (429)", f"run the same command again {when}{more}"
        )
    if status >= 500 or status == 408:
        return Unreachable(
            f"{host()} has a problem of its own ({status})",
            "run the same command again later: what was downloaded is kept",
        )
    words = f": {redact(said)}" if said else ""
    return NetworkError(f"hf:{repo}: {host()} answered {status}{words}", f"look at {page(repo)}; check HF_ENDPOINT")


def _gated(repo: str, token: bool) -> PillmError:
    if token:
        return NetworkError(
            f"hf:{repo} is gated: your account has not been let in yet (403)",
            f"accept its terms at {page(repo)}, then run the same command again"
            " (a fine-grained token also needs read access to gated repositories)",
        )
    return NetworkError(
        f"hf:{repo} is gated, and no token was sent",
        f"accept its terms at {page(repo)}, then: hf auth login (or set HF_TOKEN)",
    )


def _revisions(repo: str) -> str:
    """What could have been meant; asking is a courtesy, so a failure of it is no failure."""
    url = f"{constants.ENDPOINT}/api/models/{repo}/refs"
    try:
        # The client's own list_repo_refs waits for ever on a hub that falls silent.
        answer = get_session().get(url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        names = [str(ref["name"]) for kind in ("branches", "tags") for ref in answer.raise_for_status().json()[kind]]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, OSError):
        return f"see {page(repo)}/tree/main for its branches and tags"
    shown = ", ".join(redact(name) for name in names[:12])
    return f"there are: {shown}{', ...' if len(names) > 12 else ''}" if names else f"see {page(repo)}"


def _unanswered(error: Exception) -> PillmError:
    if isinstance(error, httpx2.TimeoutException):
        return Unreachable(
            f"{host()} did not answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} s",
            "run the same command again: it goes on from where it was"
            " (HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer on a slow line)",
        )
    if isinstance(error, httpx2.ProxyError):
        return Unreachable("the proxy does not let us through", "check HTTPS_PROXY and NO_PROXY")
    if is_certificate(error):
        return NetworkError(
            f"the certificate of {host()} is not trusted here",
            "if a company proxy signs connections, put its certificate in the file that SSL_CERT_FILE names;"
            " check this machine's clock too",
        )
    if isinstance(error, httpx2.LocalProtocolError):
        return _bad_token()
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return UsageError("HF_ENDPOINT is not a web address", "write it as https://host, or unset it")
    if isinstance(error, httpx2.ConnectError):
        why = "its name is not known" if _name_unknown(error) else "the connection is refused"
        return Unreachable(
            f"{host()} cannot be reached: {why}",
            "check the network (and HTTPS_PROXY, HF_ENDPOINT), then run the same command again",
        )
    return Unreachable(
        f"the connection to {host()} was cut again and again",
        "run the same command again: it goes on from where it was",
    )


def _bad_token() -> PillmError:
    # The client's own text would quote the header that cannot be sent.
    return UsageError(
        "the request cannot be sent: the token holds characters that no token has",
        "copy the token again: hf auth login, or HF_TOKEN without quotes and line ends",
    )


def _name_unknown(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False
