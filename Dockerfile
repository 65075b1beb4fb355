# ClearSR in a container: `docker build --target cpu -t clearsr .`, or `--target cuda`.
# The compact model is part of the package, so nothing is downloaded when it runs.

FROM python:3.12-slim AS wheel
WORKDIR /source
RUN pip install --no-cache-dir hatchling==1.33.0
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m hatchling build -t wheel -d /wheels

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 clearsr && mkdir /data && chown clearsr /data
COPY constraints.txt /opt/clearsr/constraints.txt
EXPOSE 7860
WORKDIR /data
ENTRYPOINT ["clearsr"]
CMD ["serve", "--host", "0.0.0.0"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]

FROM base AS cuda
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install -c /opt/clearsr/constraints.txt "$(echo /wheels/*.whl)[batch]"
USER 1000

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --extra-index-url https://download.pytorch.org/whl/cpu \
    -c /opt/clearsr/constraints.txt "$(echo /wheels/*.whl)[batch]"
USER 1000
