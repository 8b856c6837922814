"""The relay's authorization server over HTTP: metadata, login pages, token endpoint, devices, revocation, userinfo.

See docs/relay-login.md. Everything here may be asked without a token, so that all of it is bounded: forms in size,
requests by address, logins in number. Called by the application.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode, urlsplit

import msgspec
from starlette.responses import Response

from mep_wire.errors import LoginFailed, MepError, ProviderUnavailable
from relay.api import login_pages as pages
from relay.api.context import ApiContext
from relay.api.raw import RawRequest, redirect, to_json
from relay.auth.login import LOGIN_S, Flow
from relay.auth.oauth import GRANTS, OAuthError, Wanted
from relay.auth.settings import SCOPES
from relay.log import logger
from relay.rate_limit import network_of

COOKIE = "mep_login"
_COOKIE = re.compile(r"[A-Za-z0-9_-]{32}")
_CHALLENGE_LENGTH = 43
DEVICE_COSTS = 9
"""A request for a device counts as so many more: each is stored until it expires."""
Handler = Callable[[ApiContext, RawRequest], Awaitable[Response]]


def _ways(service: ApiContext) -> list[tuple[str, str, str]]:
    """Return the ways to log in: name, title, kind."""
    settings = service.people.settings
    ways = [(one.name, one.title or one.name, "oidc") for one in settings.providers if one.client_id]
    return ways + ([(settings.password.name, settings.password.title, "password")] if settings.password else [])


async def metadata(service: ApiContext, request: RawRequest) -> Response:
    """GET /.well-known/oauth-authorization-server (RFC 8414)."""
    issuer = service.issuer()
    return to_json(
        {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/oauth/authorize",
            "token_endpoint": f"{issuer}/oauth/token",
            "device_authorization_endpoint": f"{issuer}/oauth/device",
            "revocation_endpoint": f"{issuer}/oauth/revoke",
            "userinfo_endpoint": f"{issuer}/oauth/userinfo",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": list(GRANTS),
            "scopes_supported": list(SCOPES),
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
            "authorization_response_iss_parameter_supported": True,
            "mep_login_methods": [{"name": n, "title": t, "kind": k} for n, t, k in _ways(service)],
        }
    )


def _oauth(handler: Handler) -> Handler:
    """Answer the handler's refusals as RFC 6749 says."""

    async def answered(service: ApiContext, request: RawRequest) -> Response:
        try:
            return await handler(service, request)
        except OAuthError as error:
            if error.detail:
                logger.warning("oauth: a request failed", reason=error, detail=error.detail)
            return _oauth_error(error.error, error.description, error.status)
        except ProviderUnavailable as error:
            logger.warning("oauth: a request failed", reason=error, detail=error.detail)
            answer = _oauth_error("temporarily_unavailable", error.text, 503, error.correlation_id)
            answer.headers["retry-after"] = "5"
            return answer

    return answered


def _oauth_error(error: str, description: str, status: int, correlation_id: str = "") -> Response:
    body = {
        "error": error,
        "error_description": description,
        "correlation_id": correlation_id or MepError().correlation_id,
    }
    answer = to_json(body, status)
    if status == 401:
        answer.headers["www-authenticate"] = 'Basic realm="mep-relay"'
    return answer


@_oauth
async def token(service: ApiContext, request: RawRequest) -> Response:
    """POST /oauth/token."""
    answer = await service.oauth.token(request.form, request.authorization)
    made_for = service.people.own(f"Bearer {answer['access_token']}")
    service.audit.note("token.issue", made_for, grant=request.form.get("grant_type", "")[:80])
    return to_json(answer)


@_oauth
async def device_start(service: ApiContext, request: RawRequest) -> Response:
    """POST /oauth/device (RFC 8628)."""
    client = service.oauth.authenticated(request.form, request.authorization)
    service.strangers.spend(network_of(request.address), DEVICE_COSTS)
    return to_json(await service.oauth.start_device(service.oauth.wanted(client, request.form)))


@_oauth
async def revoke(service: ApiContext, request: RawRequest) -> Response:
    """POST /oauth/revoke (RFC 7009)."""
    identity = await service.oauth.revoke(request.form, request.authorization)
    if identity:
        service.audit.note("token.revoke", identity=identity)
    return to_json({})


# --- pages ------------------------------------------------------------------------------------------


def _page(handler: Handler) -> Handler:
    """Show the handler's failures on a page."""

    async def answered(service: ApiContext, request: RawRequest) -> Response:
        try:
            return await handler(service, request)
        except OAuthError as error:
            return pages.refused(error.description)
        except MepError as error:
            logger.warning("login: a request failed", reason=error, detail=error.detail)
            return pages.refused(error.text, error.correlation_id, status=error.http_status)

    return answered


def cookie_name(issuer: str) -> str:
    """Return the name of a login's cookie. With https no other host, and no clear-text request, can set `__Host-`."""
    return f"__Host-{COOKIE}" if issuer.startswith("https:") else COOKIE


def _begin(service: ApiContext, request: RawRequest, wanted: Wanted, user_code: str = "") -> Response:
    """Return the redirect to a login's first page, for this browser alone: its cookie is made if there is none."""
    known = request.cookies.get(cookie_name(service.issuer()), "")
    browser = known if _COOKIE.fullmatch(known) else secrets.token_urlsafe(24)
    flow = service.logins.begin(wanted, browser, network_of(request.address), user_code)
    answer, secure = redirect(_first_page(service, flow)), service.issuer().startswith("https:")
    answer.set_cookie(cookie_name(service.issuer()), browser, int(LOGIN_S), httponly=True, secure=secure)
    return answer


@_page
async def authorize(service: ApiContext, request: RawRequest) -> Response:
    """GET /oauth/authorize. A wrong client or redirect_uri is shown here; nothing else may choose where to go."""
    values = request.query
    client = service.oauth.client(values.get("client_id", ""))
    if client is None:
        raise OAuthError("invalid_client", "There is no such client.")
    redirect_uri = values.get("redirect_uri", "")
    service.oauth.check_redirect(client, redirect_uri)
    try:
        wanted = _code_wanted(service, request, redirect_uri)
    except OAuthError as error:
        return _back(service, redirect_uri, values.get("state", ""), error=error.error, description=error.description)
    return _begin(service, request, wanted)


def _code_wanted(service: ApiContext, request: RawRequest, redirect_uri: str) -> Wanted:
    values = request.query
    if values.get("response_type") != "code":
        raise OAuthError("unsupported_response_type", "response_type must be code.")
    challenge = values.get("code_challenge", "")
    if values.get("code_challenge_method") != "S256" or len(challenge) != _CHALLENGE_LENGTH:
        raise OAuthError("invalid_request", "PKCE with S256 is needed: code_challenge, code_challenge_method.")
    client = service.oauth.client(values.get("client_id", ""))
    assert client is not None
    wanted = service.oauth.wanted(client, values)
    return msgspec.structs.replace(
        wanted, redirect_uri=redirect_uri, state=values.get("state", "")[:2048], challenge=challenge
    )


def _first_page(service: ApiContext, flow: Flow) -> str:
    """Return the address at which a login goes on: a choice, or at once the only way there is."""
    ways = _ways(service)
    named = [one for one in ways if one[0] == flow.wanted.login_method]
    only = named[0] if named else ways[0] if len(ways) == 1 else None
    if only is None:
        return f"/login?flow={flow.handle}"
    return f"/login/{'password' if only[2] == 'password' else 'to'}?flow={flow.handle}&method={only[0]}"


def _back(
    service: ApiContext, redirect_uri: str, state: str, *, code: str = "", error: str = "", description: str = ""
) -> Response:
    """Return the redirect to a client. Its address was checked before."""
    values = {"code": code} if code else {"error": error, "error_description": description}
    if state:
        values["state"] = state
    values["iss"] = service.issuer()
    return redirect(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(values)}")


def _flow(service: ApiContext, request: RawRequest) -> Flow:
    values = request.form or request.query
    return service.logins.find(values.get("flow", ""), request.cookies.get(cookie_name(service.issuer()), ""))


def _client_name(service: ApiContext, flow: Flow) -> str:
    client = service.oauth.client(flow.wanted.client_id)
    return client.name if client else flow.wanted.client_id


@_page
async def choose(service: ApiContext, request: RawRequest) -> Response:
    """GET /login: the ways to log in."""
    flow = _flow(service, request)
    return pages.choice(flow.handle, _ways(service), _client_name(service, flow))


def _callback(service: ApiContext, provider: str) -> str:
    return f"{service.issuer()}/oauth/callback/{provider}"


@_page
async def to_provider(service: ApiContext, request: RawRequest) -> Response:
    """GET /login/to: send the browser to a provider."""
    flow = _flow(service, request)
    name = request.query.get("method", "")
    return redirect(await service.logins.to_provider(flow, name, _callback(service, name)))


@_page
async def from_provider(service: ApiContext, request: RawRequest) -> Response:
    """GET /oauth/callback/PROVIDER: the browser comes back."""
    name, browser = request.path["provider"], request.cookies.get(cookie_name(service.issuer()), "")
    flow = await service.logins.from_provider(name, request.query, browser, _callback(service, name))
    return redirect(f"/login/consent?flow={flow.handle}")


def _password_title(service: ApiContext) -> str:
    settings = service.people.settings.password
    if settings is None:
        raise LoginFailed(provider="this relay", reason="there is no such way to log in")
    return settings.title


@_page
async def password_form(service: ApiContext, request: RawRequest) -> Response:
    """GET /login/password."""
    return pages.password(_flow(service, request).handle, _password_title(service))


@_page
async def password(service: ApiContext, request: RawRequest) -> Response:
    """POST /login/password."""
    flow, title = _flow(service, request), _password_title(service)
    user, word = request.form.get("user", ""), request.form.get("password", "")
    try:
        await service.logins.by_password(flow, user, word, network_of(request.address))
    except LoginFailed as error:
        logger.warning(
            "login: a password was refused",
            user=user[:64],
            address=request.address,
            reason=error,
        )
        return pages.password(flow.handle, title, error.text)
    return redirect(f"/login/consent?flow={flow.handle}")


@_page
async def consent_form(service: ApiContext, request: RawRequest) -> Response:
    """GET /login/consent."""
    flow = _flow(service, request)
    if flow.caller is None:
        raise LoginFailed(provider="this relay", reason="it is not finished")
    if flow.refused:
        flow.wanted = msgspec.structs.replace(flow.wanted, again=True)
        return pages.refused(flow.refused, status=403, again=f"/login?flow={flow.handle}")
    person = service.store.identity_set(flow.caller.account_id, flow.caller.identity_id)
    username = person.identities[0].username if person else ""
    target = urlsplit(flow.wanted.redirect_uri)
    origin = f"{target.scheme}://{target.netloc}" if target.netloc else ""
    return pages.consent(
        flow.handle,
        _client_name(service, flow),
        username,
        service.people.allowed_scopes(flow.caller.account_id, flow.wanted.scopes),
        where=origin,
        user_code=flow.user_code,
        form_to=origin,
    )


@_page
async def consent(service: ApiContext, request: RawRequest) -> Response:
    """POST /login/consent: the person has decided."""
    flow = _flow(service, request)
    caller, wanted = flow.caller, flow.wanted
    if caller is None or flow.refused:
        raise LoginFailed(provider="this relay", reason="it is not finished")
    service.logins.end(flow)
    agreed = request.form.get("decision") == "yes"
    service.audit.note("login.consent", caller, client_id=wanted.client_id, agreed=agreed, method=caller.login.provider)
    if wanted.device:
        in_time = await service.oauth.decide_device(wanted.device, caller if agreed else None)
        if not in_time:
            return pages.refused("The device has waited too long. Begin again there.")
        return pages.finished(
            "You can close this page and go on at the device." if agreed else "The device gets nothing."
        )
    if not agreed:
        return _back(
            service, wanted.redirect_uri, wanted.state, error="access_denied", description="The person said no."
        )
    code = await service.oauth.make_code(wanted, caller)
    return _back(service, wanted.redirect_uri, wanted.state, code=code)


@_page
async def device_form(service: ApiContext, request: RawRequest) -> Response:
    """GET /device."""
    return pages.device(request.query.get("user_code", "")[:32])


@_page
async def device(service: ApiContext, request: RawRequest) -> Response:
    """POST /device: the person has typed a code."""
    user_code = request.form.get("user_code", "")
    wanted = service.oauth.device_wanted(user_code)
    if wanted is None:
        return pages.device(user_code[:32], "There is no such code, or it has expired.")
    return _begin(service, request, wanted, user_code.upper()[:32])
