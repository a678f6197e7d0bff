# For GPU hosts: torch's default wheel brings CUDA, the host brings the driver.
#   docker build -t noscratch . && docker run --gpus all -v "$PWD/data:/noscratch/data" noscratch noscratch status
FROM python:3.11.14-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /noscratch
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir torch==2.13.0 \
    && python -m pip install --no-cache-dir --require-hashes --no-deps --requirement requirements.lock

COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .

CMD ["noscratch", "status"]
