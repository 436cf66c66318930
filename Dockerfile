# SGLang 0.5.23 with transformers 5 and CUDA 13. SGLang serves GLM-4.7-Flash since 0.5.10 (with transformers 5) and its
# draft layer (EAGLE) since 0.5.14; since 0.5.20, images come with CUDA 13 only, so hosts need a driver for it.
ARG BASE_IMAGE=lmsysorg/sglang:v0.5.23
FROM ${BASE_IMAGE}
ARG BASE_IMAGE

LABEL org.opencontainers.image.title="glm-flash-worker" \
      org.opencontainers.image.description="A serverless GPU worker that serves GLM-4.7-Flash through SGLang" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /worker

# An init: reaps the zombies that a killed engine's children leave, and forwards signals.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["/usr/bin/tini", "--"]

# The worker's own packages: those that the base image already has stay as they are, the rest are locked. The comparison
# fails the build if a package of the base image was changed or removed anyway.
# hadolint ignore=DL3013
RUN --mount=type=bind,source=embedded/requirements.txt,target=/tmp/lock \
    python3 -m pip list --format=freeze | sort >/tmp/before \
    && python3 -m pip freeze --exclude-editable >/tmp/constraints \
    && awk -F== '{ name = tolower($1); gsub("_", "-", name) } NR == FNR { had[name]; next } /==/ && !(name in had)' \
        /tmp/before /tmp/lock >>/tmp/constraints \
    && python3 -m pip install --no-cache-dir --root-user-action=ignore --constraint /tmp/constraints \
        "runpod==1.12.0" httpx httptools python-dotenv uvloop orjson prometheus_client fastapi-offline \
    && python3 -m pip list --format=freeze | sort >/tmp/after \
    && comm -23 /tmp/before /tmp/after >/tmp/changed \
    && if [ -s /tmp/changed ]; then echo "packages of the base image were changed:"; cat /tmp/changed; exit 1; fi \
    && rm /tmp/before /tmp/constraints /tmp/after /tmp/changed

# `--build-arg MODEL_NAME=…` puts a model into the image; it is then served from there, without the hub or a volume.
# A gated one needs `--secret id=HF_TOKEN`.
ARG MODEL_NAME=
ARG MODEL_REVISION=
RUN --mount=type=secret,id=HF_TOKEN \
    if [ -n "${MODEL_NAME}" ]; then \
        if [ -s /run/secrets/HF_TOKEN ]; then HF_TOKEN=$(cat /run/secrets/HF_TOKEN) && export HF_TOKEN; fi \
        && HF_HOME=/opt/models HF_XET_HIGH_PERFORMANCE=1 \
            hf download "${MODEL_NAME}" --revision "${MODEL_REVISION:-main}" \
            --include "*.safetensors" --include "*.json" --include "*.jinja" --include "*.txt" \
            --include "*.model" --include "*.tiktoken" --include "*.py" \
        && rm -rf /opt/models/xet \
        && chmod -R a+rX /opt/models; \
    fi

# The build fails unless the worker will find that model complete. A separate step: when the worker's files change, it
# runs again and the download does not.
RUN --mount=type=secret,id=HF_TOKEN \
    --mount=type=bind,source=sglang_engine,target=/tmp/check/sglang_engine \
    if [ -n "${MODEL_NAME}" ]; then \
        if [ -s /run/secrets/HF_TOKEN ]; then HF_TOKEN=$(cat /run/secrets/HF_TOKEN) && export HF_TOKEN; fi \
        && PYTHONPATH=/tmp/check PYTHONDONTWRITEBYTECODE=1 python3 -m sglang_engine.hub \
            "${MODEL_NAME}" "${MODEL_REVISION:-main}" /opt/models/hub; \
    fi

# RunPod's cached models and network volumes are under HF_HOME. (The tokens in NUM_DRAFT_TOKENS are not secret.)
# hadolint ignore=DL3064
ENV HF_HOME=/runpod-volume/huggingface-cache \
    MODEL_NAME=${MODEL_NAME:-zai-org/GLM-4.7-Flash} \
    MODEL_REVISION=${MODEL_REVISION} \
    SERVED_MODEL_NAME=glm-4.7-flash \
    TOOL_CALL_PARSER=glm47 \
    REASONING_PARSER=glm45 \
    MEM_FRACTION_STATIC=0.9 \
    SPECULATIVE_ALGORITHM=EAGLE \
    SPECULATIVE_NUM_STEPS=3 \
    SPECULATIVE_EAGLE_TOPK=1 \
    SPECULATIVE_NUM_DRAFT_TOKENS=4

COPY handler.py engine.py ./
COPY common ./common
COPY gateway ./gateway
COPY local_runpod ./local_runpod
COPY serverless ./serverless
COPY sglang_engine ./sglang_engine

# What the image sets, so that the worker can tell it from what the user sets: a preset may replace it. The GPU chooses
# the preset, unless the image has a model of its own.
RUN printenv >image.env && if [ ! -e /opt/models ]; then echo PRESET=auto >>image.env; fi

EXPOSE 8000 30000

# "Healthy" means that the engine is warm, in every mode. A first start may download 62 GB.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30m --retries=3 CMD ["python3", "engine.py", "--health"]

CMD ["python3", "-u", "handler.py"]
