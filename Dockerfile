# One image for every part: `docker run nexus gateway --config …`, `… cacheproxy …`, `… consumer …`.
#
#   docker build -t nexus .
#
# The first stage compiles the kernels and collects wheels of everything; the second has neither a
# compiler nor the sources, and runs as a user without rights.

FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc=4:12.* libc6-dev=2.36-* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY nexus nexus
# A kernel that does not compile ends the build: an image that is slow by accident helps nobody.
RUN NEXUS_REQUIRE_EXTENSIONS=1 pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
COPY --from=build /wheels /wheels
# The one version that is there is the one that was just built.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-index --find-links=/wheels nexus-edge \
 && rm -rf /wheels \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin nexus
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NEXUS_REQUIRE_EXTENSIONS=1
USER 10001:10001
WORKDIR /etc/nexus
STOPSIGNAL SIGTERM
ENTRYPOINT ["nexus"]
CMD ["--help"]
