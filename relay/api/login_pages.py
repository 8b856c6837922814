"""The HTML of the login: choice of a way, password, consent, device code, end, refusal. No script, nothing foreign.

Every text that isn't written here is escaped. Called by relay.api.oauth.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape

from starlette.responses import HTMLResponse

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f4f5f7;color:#1c2330}"
    "main{max-width:26rem;margin:8vh auto;background:#fff;padding:2rem;border-radius:.5rem;"
    "box-shadow:0 1px 4px #0003}h1{font-size:1.3rem;margin-top:0}"
    "a.way,button{display:block;box-sizing:border-box;width:100%;padding:.7rem;margin:.6rem 0;border:1px solid #3558a8;"
    "border-radius:.3rem;background:#3558a8;color:#fff;font:inherit;text-align:center;text-decoration:none;cursor:pointer}"
    "button.no{background:#fff;color:#3558a8}label{display:block;margin:.6rem 0}"
    "input{box-sizing:border-box;width:100%;padding:.6rem;font:inherit;border:1px solid #99a;border-radius:.3rem}"
    ".wrong{color:#a3161b}.small{font-size:.85rem;color:#556}code{font-size:1.2rem;letter-spacing:.1em}"
)
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
SCOPE_TEXTS = {
    "submit": "register functions, and run and cancel tasks as you",
    "read": "see your endpoints, functions, tasks and results",
    "manage_endpoints": "register, change, share and delete your endpoints",
    "manage_tokens": "list, make and revoke your access tokens",
    "admin": "administer this relay",
}


def page(title: str, body: str, *, status: int = 200, form_to: str = "") -> HTMLResponse:
    """Return a page. `form_to`: another origin to which its form may lead."""
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action 'self' {form_to}".strip()
    )
    headers = {
        "content-security-policy": policy,
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    return HTMLResponse(html, status, headers)


def _hidden(handle: str) -> str:
    return f'<input type="hidden" name="flow" value="{escape(handle)}">'


def choice(handle: str, ways: Sequence[tuple[str, str, str]], client: str) -> HTMLResponse:
    """Return the page that offers the ways to log in, each as name, title and kind."""
    links = "".join(
        f'<a class="way" href="/login/{"password" if kind == "password" else "to"}?flow={escape(handle)}'
        f'&amp;method={escape(name)}">{escape(title)}</a>'
        for name, title, kind in ways
    )
    none = '<p class="wrong">This relay has no way to log in but tokens of its administrator.</p>'
    return page("Log in", f"<p>{escape(client)} asks you to log in with</p>{links or none}")


def password(handle: str, title: str, wrong: str = "") -> HTMLResponse:
    """Return the page that asks for a password."""
    said = f'<p class="wrong">{escape(wrong)}</p>' if wrong else ""
    form = (
        f'<form method="post" action="/login/password">{_hidden(handle)}'
        '<label>Name<input name="user" autocomplete="username" autofocus required></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
        "<button>Log in</button></form>"
    )
    return page(title, said + form, status=403 if wrong else 200)


def consent(
    handle: str, client: str, person: str, scopes: Sequence[str], *, where: str, user_code: str, form_to: str
) -> HTMLResponse:
    """Return the page that asks whether the client may have the scopes."""
    listed = "".join(f"<li>{escape(SCOPE_TEXTS.get(one, one))}</li>" for one in scopes)
    if user_code:
        asks = (
            f"<p>A device shows the code <code>{escape(user_code)}</code>. Go on only if it is yours, and you have "
            "just begun to log in there.</p>"
        )
    else:
        asks = f'<p class="small">You then return to {escape(where)}.</p>'
    form = (
        f'<form method="post" action="/login/consent">{_hidden(handle)}'
        '<button name="decision" value="yes">Allow</button>'
        '<button class="no" name="decision" value="no">Refuse</button></form>'
    )
    body = f"<p>You are <b>{escape(person)}</b>. {escape(client)} wants to</p><ul>{listed}</ul>{asks}{form}"
    return page("Allow access?", body, form_to=form_to)


def device(user_code: str, wrong: str = "") -> HTMLResponse:
    """Return the page that asks for a device's code."""
    said = f'<p class="wrong">{escape(wrong)}</p>' if wrong else ""
    form = (
        '<form method="post" action="/device"><label>The code that the device shows'
        f'<input name="user_code" value="{escape(user_code)}" autocomplete="off" required></label>'
        "<button>Continue</button></form>"
    )
    return page("Log in on a device", said + form, status=400 if wrong else 200)


def finished(text: str) -> HTMLResponse:
    """Return the last page of a login for a device."""
    return page("Done", f"<p>{escape(text)}</p>")


def refused(text: str, correlation_id: str = "", *, status: int = 400, again: str = "") -> HTMLResponse:
    """Return the page of a failure; `again` is an address of the relay's to try once more."""
    link = f'<a class="way" href="{escape(again)}">Log in again</a>' if again else ""
    told = f'<p class="small">Correlation id {escape(correlation_id)}</p>' if correlation_id else ""
    return page("That did not work", f'<p class="wrong">{escape(text)}</p>{link}{told}', status=status)
