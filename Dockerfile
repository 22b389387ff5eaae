# The Python and Debian that the tests run on.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# hadolint ignore=DL3006 # the tag is in PYTHON_IMAGE
FROM ${PYTHON_IMAGE} AS builder
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Two environments, so that neither pip nor the build tools reach the image.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/authsvc
COPY requirements/build.txt requirements/run.txt requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary=:all: -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/authsvc/bin/python install \
    --require-hashes --only-binary=:all: -r requirements/run.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY authsvc authsvc
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/authsvc/bin/python install --no-deps --no-index /wheels/*.whl

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
COPY --from=builder /opt/authsvc /opt/authsvc
ENV PATH=/opt/authsvc/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    AUTHSVC_LISTEN=0.0.0.0:50051
# A number, so that Kubernetes' runAsNonRoot can tell.
USER 10001:10001
WORKDIR /
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["authsvc", "health"]
ENTRYPOINT ["authsvc"]
CMD ["serve"]
