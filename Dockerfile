# docker build -t clipself_seg .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" clipself_seg predict . --words "dog, grass"
FROM python:3.12.12-slim-bookworm
# Without a GPU; an empty --build-arg PIP_EXTRA_INDEX_URL= takes PyPI's torch, which brings CUDA.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY setup.cfg pyproject.toml README.md LICENSE constraints.txt /src/
COPY configs /src/configs
COPY clipself_seg /src/clipself_seg
RUN pip install --no-cache-dir --constraint /src/constraints.txt /src && clipself-seg install-detectron2 && rm -rf /src
# Not root: a user of its own, or the one of --user, who gets a home for caches and keeps his files.
RUN useradd --create-home --uid 1000 --home-dir /home/user user && chmod 777 /home/user
ENV HOME=/home/user
USER user
WORKDIR /data
ENTRYPOINT ["clipself-seg"]
