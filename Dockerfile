FROM python:3.11-slim
RUN useradd --create-home headrace && install -d -o headrace -m 700 /data
WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md ivy.xml ./
COPY schemas schemas
COPY feature_repo feature_repo
COPY streams streams
COPY jobs jobs
COPY services services
# Editable: ivy.xml, which pins the jars of Spark jobs, is found beside the packages.
RUN pip install --no-cache-dir --no-deps --editable .
USER headrace
ENV HEADRACE_HOME=/data MALLOC_ARENA_MAX=2
CMD ["headrace", "--help"]
