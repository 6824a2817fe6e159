# docker build -t clipself_seg . && docker run --rm -v "$PWD:/data" clipself_seg predict . --words "dog, grass"
FROM python:3.12-slim
# Without a GPU; an empty --build-arg PIP_EXTRA_INDEX_URL= takes PyPI's torch, which brings CUDA.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY setup.cfg pyproject.toml README.md LICENSE /src/
COPY configs /src/configs
COPY clipself_seg /src/clipself_seg
RUN pip install --no-cache-dir /src && clipself-seg install-detectron2 && rm -rf /src
WORKDIR /data
ENTRYPOINT ["clipself-seg"]
