# SGLang 0.5.23 with CUDA 13. GLM-4.7-Flash is served since SGLang 0.5.10, its draft layer (EAGLE) since 0.5.14.
ARG BASE_IMAGE=lmsysorg/sglang:v0.5.23
FROM ${BASE_IMAGE}

WORKDIR /worker

# The worker's own packages, held to what the base image has: nothing of SGLang's may change.
RUN python3 -m pip freeze --exclude-editable >/tmp/base.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/base.txt \
        "runpod==1.12.0" "httpx-aiohttp==0.2.0" "python-dotenv==1.2.4" \
    && rm /tmp/base.txt

COPY *.py sglang_options.json ./

# RunPod's cached models and network volumes.
ENV HF_HOME=/runpod-volume/huggingface-cache \
    MODEL_NAME=zai-org/GLM-4.7-Flash \
    SERVED_MODEL_NAME=glm-4.7-flash \
    TOOL_CALL_PARSER=glm47 \
    REASONING_PARSER=glm45 \
    MEM_FRACTION_STATIC=0.9 \
    SPECULATIVE_ALGORITHM=EAGLE \
    SPECULATIVE_NUM_STEPS=3 \
    SPECULATIVE_EAGLE_TOPK=1 \
    SPECULATIVE_NUM_DRAFT_TOKENS=4 \
    HOST=127.0.0.1 \
    PORT=30000

# What the image sets, so that the worker can tell it from what a user sets: a preset may replace it.
RUN printenv >image.env

CMD ["python3", "-u", "handler.py"]
