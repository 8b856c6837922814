"""Canaille, an OpenID Connect provider, on loopback with one person. It runs in an environment of its own.

Arguments: the port and the relay's redirect address.
"""

import sys

from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from joserfc.jwk import RSAKey

port, redirect = sys.argv[1:3]
key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
settings = {
    "SECRET_KEY": "a secret of the tests",
    "SERVER_NAME": f"127.0.0.1:{port}",
    "PREFERRED_URL_SCHEME": "http",
    "CANAILLE": {"DATABASE": "memory", "SMTP": None},
    "CANAILLE_OIDC": {"ACTIVE_JWKS": [key.as_dict(private=True)], "TRUSTED_DOMAINS": ["127.0.0.1"]},
}
app = create_app(settings)
with app.app_context():
    person = models.User(
        user_name="alice",
        formatted_name="Alice A",
        family_name="A",
        emails=["alice@lab.example.edu"],
        password="correct horse",
    )
    client = models.Client(
        client_id="relay-login",
        client_secret="a secret of the tests",
        client_name="relay",
        client_uri="http://127.0.0.1",
        redirect_uris=[redirect],
        grant_types=["authorization_code"],
        response_types=["code"],
        scope=["openid", "profile", "email"],
        token_endpoint_auth_method="client_secret_basic",
    )
    for one in (person, client):
        Backend.instance.save(one)
    client.audience = [client]
    Backend.instance.save(client)
app.run(host="127.0.0.1", port=int(port))
