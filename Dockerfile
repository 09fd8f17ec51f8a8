# docker build -t combo .   (docs/clusters.md says how it is run)
FROM python:3.12-slim
COPY . /opt/combo
RUN pip install --no-cache-dir --constraint /opt/combo/constraints.txt '/opt/combo[cluster]'
ENTRYPOINT ["combo"]
