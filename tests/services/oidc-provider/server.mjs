// The OpenID Connect provider of the tests: the npm package oidc-provider on loopback, with its own login pages.
// Arguments: the port, the relay's redirect address, the directory of node_modules. Any name may log in there.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [port, redirect, modules] = process.argv.slice(2);
const require = createRequire(modules + "/x.js");
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")).href);

const issuer = `http://127.0.0.1:${port}`;
const claimsOf = (sub) => ({
  sub,
  preferred_username: `${sub}@campus.example.edu`,
  name: sub[0].toUpperCase() + sub.slice(1),
  email: `${sub}@campus.example.edu`,
  email_verified: true,
  groups: ["physics"],
});
const provider = new Provider(issuer, {
  clients: [
    { client_id: "relay-login", client_secret: "a secret of the tests", redirect_uris: [redirect],
      grant_types: ["authorization_code", "refresh_token"], response_types: ["code"] },
    { client_id: "portal", client_secret: "a secret of the portal", redirect_uris: [],
      grant_types: ["client_credentials"], response_types: [] },
  ],
  claims: { openid: ["sub"], profile: ["name", "preferred_username", "groups"], email: ["email", "email_verified"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: {
    devInteractions: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: () => ({ scope: "compute", audience: "relay-api", accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS256" } } }),
    },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => claimsOf(id) }),
});
provider.on("server_error", (ctx, error) => console.error(error));
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
