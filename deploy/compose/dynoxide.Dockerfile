# dynoxide, an engine with DynamoDB's API over SQLite, as the tests have it; for deploy/compose.yaml.
FROM node:22-bookworm-slim AS fetch
WORKDIR /opt/dynoxide
ARG VERSION=1.2.1
ARG SHA512=b011ea97127d00d90b96e1646117dde6bf18d00a457b0e0584eae5860440803e17cc4a053ae904a359ee053435fa34eda1fab09f83564369344e7e663538e052
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN npm pack "@dynoxide/linux-x64@${VERSION}" --ignore-scripts \
    && echo "${SHA512}  dynoxide-linux-x64-${VERSION}.tgz" | sha512sum --check \
    && tar --extract --gzip --file "dynoxide-linux-x64-${VERSION}.tgz"

FROM debian:bookworm-slim
COPY --from=fetch /opt/dynoxide/package/dynoxide /usr/local/bin/dynoxide
RUN install --directory --owner=10001 --group=10001 /data
USER 10001:10001
ENTRYPOINT ["dynoxide"]
