"""Settings that every service has in common."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from nexus.settings import RESTART, Secret, Settings

__all__ = [
    "REDIS_FORM",
    "REDIS_PATTERN",
    "DialTlsSettings",
    "KafkaSettings",
    "ListenTlsSettings",
    "ListenerSettings",
    "LogSettings",
    "NamedCertificateSettings",
    "Port",
    "ProxyProtocolSettings",
    "RedisSettings",
    "SaslSettings",
    "ServiceSettings",
]

#: What a Redis URL begins with, and the same for people.
REDIS_PATTERN: Final = r"^(rediss?|unix)://"
REDIS_FORM: Final = "redis://[user:password@]host:port[/db], rediss://… or unix:///path"

Port = Annotated[int, Meta(ge=0, le=65535)]


class LogSettings(Settings, frozen=True):
    """Application log of a service."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severity written")
    ] = "info"
    format: Annotated[
        Literal["json", "human", "auto"],
        Meta(description="`auto`: human on a terminal, JSON lines elsewhere"),
    ] = "auto"
    path: Annotated[
        str,
        Meta(
            min_length=1,
            description="`-` is standard error; a file is opened anew on SIGHUP (log rotation)",
        ),
    ] = "-"


class RedisSettings(Settings, frozen=True):
    """Where Redis is."""

    url: Annotated[
        str,
        Meta(
            pattern=REDIS_PATTERN,
            extra={"form": REDIS_FORM},
            description="`redis://[user:password@]host:port[/db]`, `rediss://…` or `unix:///path`",
        ),
    ] = "redis://127.0.0.1:6379/0"


class DialTlsSettings(Settings, frozen=True):
    """TLS of connections that we make (`https://`); certificates are always verified."""

    ca_file: Annotated[
        str, Meta(description="whose certificates are believed, PEM; empty: the system's")
    ] = ""
    cert_file: Annotated[str, Meta(description="our own certificate, where one is asked for")] = ""
    key_file: Annotated[
        str, Meta(description="its private key, PEM; empty: it is in `cert_file`")
    ] = ""


class SaslSettings(Settings, frozen=True):
    """Who we are to Kafka, with a `security_protocol` that asks for it."""

    mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Meta(description="how it is asked")
    ] = "PLAIN"
    username: Annotated[str, Meta(description="user")] = ""
    password: Annotated[Secret, Meta(description="password of that user")] = ""


class KafkaSettings(Settings, frozen=True):
    """Where Kafka is, and how much the producer may hold in memory."""

    enabled: Annotated[bool, Meta(description="send and read events at all")] = True
    bootstrap_servers: Annotated[str, Meta(description="`host:port`, comma-separated")] = (
        "127.0.0.1:9092"
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Meta(description="as Kafka names it: SSL is TLS, SASL asks for a user"),
    ] = "PLAINTEXT"
    tls: DialTlsSettings = DialTlsSettings()
    sasl: SaslSettings = SaslSettings()
    compression: Annotated[
        Literal["zstd", "lz4", "snappy", "gzip", "none"],
        Meta(description="of the batches that we send"),
    ] = "zstd"
    linger_ms: Annotated[
        int, Meta(ge=0, le=10_000, description="longest wait for a batch to fill, milliseconds")
    ] = 20
    buffer_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            le=1_073_741_824,
            description="events of one worker that may wait for the broker; more are dropped",
        ),
    ] = 16_777_216


class NamedCertificateSettings(Settings, frozen=True):
    """A certificate for clients that ask for one of `names` (SNI, RFC 6066 §3)."""

    names: Annotated[
        tuple[
            Annotated[
                str,
                Meta(
                    pattern=r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
                    max_length=253,
                    extra={"form": "a host name, or `*.` and a host name"},
                ),
            ],
            ...,
        ],
        Meta(
            min_length=1,
            description="host names; `*.example.org` is every name of one label more. A name "
            "beats a `*.`",
        ),
    ]
    cert_file: Annotated[str, Meta(min_length=1, description="certificate chain, PEM")]
    key_file: Annotated[
        str, Meta(description="its private key, PEM; empty: it is in `cert_file`")
    ] = ""


class ListenTlsSettings(Settings, frozen=True):
    """TLS towards clients; off while neither `cert_file` nor `certificates` names a certificate."""

    cert_file: Annotated[str, Meta(description="certificate chain, PEM")] = ""
    key_file: Annotated[
        str, Meta(description="its private key, PEM; empty: it is in `cert_file`")
    ] = ""
    client_ca_file: Annotated[
        str, Meta(description="clients must show a certificate that one of these signed, PEM")
    ] = ""
    certificates: Annotated[
        tuple[NamedCertificateSettings, ...],
        Meta(
            max_length=1000,
            description="others by server name; clients that ask for another name, or for none, "
            "get `cert_file`, and without that are closed",
        ),
    ] = ()

    @property
    def enabled(self) -> bool:
        """Whether clients must speak TLS."""
        return bool(self.cert_file or self.certificates)


class ProxyProtocolSettings(Settings, frozen=True):
    """PROXY protocol, versions 1 and 2: a balancer in front says who the client is."""

    enabled: Annotated[
        bool,
        Meta(description="connections from `trusted` begin with a header, and are closed without"),
    ] = False
    trusted: Annotated[
        tuple[str, ...],
        Meta(description="networks, or `unix`; others connect without a header"),
    ] = ()
    timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="from accepting to the end of the header")
    ] = 3.0


class ListenerSettings(Settings, frozen=True):
    """One more address to listen on: host and port, or a unix socket."""

    host: Annotated[str, RESTART, Meta(description="address; `::` takes IPv6 and IPv4")] = ""
    port: Annotated[Port, RESTART, Meta(description="port; 0: a free one, which the log names")] = 0
    unix: Annotated[
        str, RESTART, Meta(description="path of a unix socket, in place of host and port")
    ] = ""
    unix_mode: Annotated[
        str,
        RESTART,
        Meta(
            pattern="^0?[0-7]{3}$",
            extra={"form": "three octal digits"},
            description="permissions of the unix socket, octal",
        ),
    ] = "660"
    tls: ListenTlsSettings = ListenTlsSettings()
    proxy_protocol: ProxyProtocolSettings = ProxyProtocolSettings()


class ServiceSettings(Settings, frozen=True):
    """What every service understands."""

    host: Annotated[str, RESTART, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, RESTART, Meta(description="port to listen on; 0 takes a free one")] = 0
    admin_host: Annotated[
        str,
        RESTART,
        Meta(description="address of the admin listener (health, readiness, metrics)"),
    ] = "127.0.0.1"
    admin_port: Annotated[
        Port, RESTART, Meta(description="port of the admin listener; 0: a free one")
    ] = 0
    workers: Annotated[int, RESTART, Meta(ge=1, le=64, description="worker processes")] = 1
    drain_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="longest wait for open work on SIGTERM")
    ] = 10.0
    drain_grace_seconds: Annotated[
        float,
        Meta(ge=0, le=300, description="between `/ready` turning 503 and the end of accepting"),
    ] = 0.0
    log: LogSettings = LogSettings()
