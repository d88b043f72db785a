"""What the archiver counts, for Prometheus."""

from prometheus_client import Counter, Gauge

ARCHIVED = Counter("llmos_archived_versions", "Versions archived by this process.")
ARCHIVED_BYTES = Counter("llmos_archived_bytes", "Bytes of the tensors that these versions take in the store.")
HELD = Gauge("llmos_registry_versions", "Versions in the registry.")
NEWEST = Gauge("llmos_registry_newest_version", "Number of the newest version in the registry.")
