# Two stages: the first resolves the environment from uv.lock, the second holds only that environment.
# Both start from the same base, so that the interpreter behind the environment is the same file.

FROM python:3.13-slim-trixie AS build

ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_PROGRESS=1 \
    UV_PROJECT_ENVIRONMENT=/opt/gateway \
    UV_PYTHON_DOWNLOADS=never

RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --quiet uv==0.13.8

WORKDIR /src

# Dependencies alone first: this layer stays until the lock file changes.
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=uv.lock,target=/src/uv.lock \
    --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    /opt/uv/bin/uv sync --locked --no-dev --no-install-project

COPY pyproject.toml uv.lock README.md LICENSE ./
COPY gateway gateway
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/uv/bin/uv sync --locked --no-dev --no-editable


FROM python:3.13-slim-trixie

LABEL org.opencontainers.image.title="mcp-conversation-gateway" \
      org.opencontainers.image.description="A gateway for the Responses API: remote MCP tools, approvals, stateless chains." \
      org.opencontainers.image.licenses="Apache-2.0"

# The root file system is never written: byte code is compiled above, /tmp is the only scratch space.
ENV PATH="/opt/gateway/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_SERVER__HOST=0.0.0.0 \
    GATEWAY_SERVER__PORT=8080

RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gateway \
    && mkdir /etc/gateway

COPY --from=build /opt/gateway /opt/gateway

USER 10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GATEWAY_SERVER__PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
