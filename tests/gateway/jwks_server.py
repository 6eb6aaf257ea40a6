"""A token provider on loopback: keys that can be rotated, a key set that can go away."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ALGORITHMS: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


class SigningKey:
    """A private key that signs tokens."""

    def __init__(self, algorithm: str, kid: str | None) -> None:
        self.algorithm, self.kid = algorithm, kid
        self.private: Any = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[algorithm]()

    def jwk(self) -> dict[str, Any]:
        found = json.loads(_ALGORITHMS[self.algorithm].to_jwk(self.private.public_key()))
        found |= {"use": "sig", "alg": self.algorithm}
        return found | ({"kid": self.kid} if self.kid else {})

    def pem(self) -> bytes:
        public = self.private.public_key()
        return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def token(self, **claims: Any) -> str:
        full = {"exp": int(time.time()) + 300} | claims
        headers = {"kid": self.kid} if self.kid else {}
        return jwt.encode(full, self.private, algorithm=self.algorithm, headers=headers)


class JwksServer:
    """``/keys``; ``document`` is what it says, ``status`` how."""

    def __init__(self, keys: list[SigningKey]) -> None:
        self.status = 200
        self.asked = 0
        self.serve(keys)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                self.send_header("Location", "/keys2")
                self.send_header("Content-Length", str(len(outer.document)))
                self.end_headers()
                self.wfile.write(outer.document)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def serve(self, keys: list[SigningKey]) -> None:
        self.document = json.dumps({"keys": [key.jwk() for key in keys]}).encode()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
