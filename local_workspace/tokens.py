"""What a run signs with its own fresh secret: access tokens, and shared access signatures for storage."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlencode

import jwt

TENANT_ID = "00000000-0000-0000-0000-00000000aaaa"
LIFETIME = 24 * 3600  # seconds
TICKET_LIFETIME = 3600  # seconds, of an address that a job prints


class Keys:
    """The secret of one run. Nothing that it signed is worth anything after the run."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self.identity_header = secrets.token_urlsafe(32)  # what the token endpoint asks for
        self.page_key = secrets.token_urlsafe(32)  # in the address of every page

    # No token has a start (nbf): the clock of the machine may be set back while the run lasts.

    def access_token(self, resource: str) -> dict[str, str]:
        """The answer of a managed identity's token endpoint (App Service, api-version 2019-08-01).

        `azure.identity` wants the fields as they are here; `azure.ai.ml` decodes the token and reads `tid`.
        """
        now = int(time.time())
        claims = {
            "aud": resource,
            "iss": f"https://sts.azureml.test/{TENANT_ID}/",
            "iat": now,
            "exp": now + LIFETIME,
            "tid": TENANT_ID,
            "oid": TENANT_ID,
        }
        return {
            "access_token": jwt.encode(claims, self._secret, "HS256"),
            "expires_on": str(now + LIFETIME),
            "resource": resource,
            "token_type": "Bearer",
        }

    def accepts_page_key(self, key: str) -> bool:
        return hmac.compare_digest(key.encode(), self.page_key.encode())

    def ticket(self) -> str:
        """Lets its holder open a page, for a while: what is printed is saved, in a notebook for example."""
        expiry = str(int(time.time()) + TICKET_LIFETIME)
        return f"{expiry}.{self._sign('ticket', expiry)}"

    def accepts_ticket(self, ticket: str) -> bool:
        expiry, _, signature = ticket.partition(".")
        signed = hmac.compare_digest(self._sign("ticket", expiry).encode(), signature.encode())
        return signed and time.time() < int(expiry)

    def accepts_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        try:
            jwt.decode(token, self._secret, ["HS256"], options={"verify_aud": False, "verify_iat": False})
        except jwt.InvalidTokenError:
            return False
        return True

    def sas(self, permissions: str, container: str = "") -> str:
        """A shared access signature for one container, or for the whole account.

        Field names as in a service SAS: sp permissions, se expiry, sr=c a container, srt=sco an account,
        sig the signature.
        """
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + LIFETIME))
        scope = {"sr": "c"} if container else {"ss": "b", "srt": "sco"}
        signature = self._sign(container, permissions, expiry)
        return urlencode(
            {"sv": "2025-01-05", "spr": "https", **scope, "se": expiry, "sp": permissions, "sig": signature}
        )

    def accepts_sas(self, query: Mapping[str, str], container: str, permission: str) -> bool:
        scope = container if query.get("sr") == "c" else ""
        permissions, expiry = query.get("sp", ""), query.get("se", "")
        expected = self._sign(scope, permissions, expiry)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        signed = hmac.compare_digest(expected.encode(), query.get("sig", "").encode())
        return signed and now < expiry and permission in permissions

    def _sign(self, *parts: str) -> str:
        digest = hmac.new(self._secret, "\n".join(parts).encode(), hashlib.sha256).digest()
        return base64.b64encode(digest).decode()
