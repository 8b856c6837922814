"""A browser for tests of logins: cookies for each host and port, redirects one at a time, forms by their fields."""

from __future__ import annotations

import html
import http.client
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode, urljoin, urlsplit


@dataclass
class Page:
    """One answer."""

    url: str
    status: int
    headers: dict[str, str]
    text: str

    @property
    def location(self) -> str:
        """Where it redirects to, absolute."""
        return urljoin(self.url, self.headers["location"])

    @property
    def links(self) -> list[str]:
        """The addresses of its links, absolute."""
        return [urljoin(self.url, html.unescape(one)) for one in re.findall(r'<a [^>]*href="([^"]*)"', self.text)]

    @property
    def form(self) -> tuple[str, dict[str, str]]:
        """The first form's address and its fields with their values."""
        found = re.search(r"<form[^>]*?(?:action=\"([^\"]*)\")?[^>]*>(.*?)</form>", self.text, re.DOTALL)
        assert found, self.text
        tag = re.search(r"<form[^>]*>", self.text)
        assert tag
        action = re.search(r'action="([^"]*)"', tag[0])
        fields = {}
        for one in re.findall(r"<input[^>]*>", found[2]):
            name, value = re.search(r'name="([^"]*)"', one), re.search(r'value="([^"]*)"', one)
            if name:
                fields[name[1]] = html.unescape(value[1]) if value else ""
        return urljoin(self.url, html.unescape(action[1]) if action else ""), fields


@dataclass
class Browser:
    """One person's browser."""

    cookies: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, url: str) -> Page:
        """Fetch one address, without following."""
        return self._ask("GET", url, None)

    def post(self, url: str, fields: dict[str, str]) -> Page:
        """Send a form, without following."""
        return self._ask("POST", url, urlencode(fields))

    def follow(self, page: Page, until: str = "\0", most: int = 20) -> Page:
        """Follow redirects to the first page, or up to the one that leads to an address with this beginning."""
        while page.status in (301, 302, 303, 307):
            if page.location.startswith(until):
                return page
            most -= 1
            assert most, page.location
            page = self.get(page.location)
        return page

    def submit(self, page: Page, **fields: str) -> Page:
        """Send a page's first form with these fields, without following."""
        action, known = page.form
        return self.post(action, {**known, **fields})

    def _ask(self, method: str, url: str, body: str | None) -> Page:
        parts = urlsplit(url)
        jar = self.cookies.setdefault(parts.netloc, {})
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
        headers = {"Accept": "text/html"}
        if jar:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in jar.items())
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            for value in answer.headers.get_all("set-cookie", []):
                name, _, rest = value.partition("=")
                jar[name] = rest.partition(";")[0]
            return Page(url, answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)
        finally:
            connection.close()
