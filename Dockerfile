# For GPU hosts: torch's default wheel brings CUDA, the host brings the driver.
#   docker build -t noscratch . && docker run --gpus all -v "$PWD/data:/noscratch/data" noscratch noscratch status
# The user of the image is 1000: data/ has to be writable for it (or: docker run --user "$(id -u)").
# The tag names a version of Python and of Debian. No digest is pinned: it would also pin the system's security fixes of that
# day, and results depend on none of them. `docker build --pull` takes the present ones.
FROM python:3.11.14-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /noscratch
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir torch==2.13.0 \
    && python -m pip install --no-cache-dir --require-hashes --no-deps --requirement requirements.lock

COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && useradd --uid 1000 --create-home noscratch \
    && chown --recursive noscratch:noscratch /noscratch
USER 1000

CMD ["noscratch", "status"]
