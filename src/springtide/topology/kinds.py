"""The kinds of nodes that a topology may name, and what a URL of each looks like."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`schemes` are those of a given node's url, `least_bytes` what a supervised one's memory must be; a kind
    that is `given` has no supervised ones."""

    name: str
    says: str
    schemes: tuple[str, ...]
    least_bytes: int = 0
    given: bool = False


_WEB = ("http", "https")
_REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix")

KINDS = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(name="postgres", says="PostgreSQL server", schemes=("postgresql", "postgres")),
            Kind(name="pgbouncer", says="PgBouncer connection pooler", schemes=("postgresql", "postgres")),
            Kind(name="redis", says="Redis server", schemes=_REDIS),
            Kind(name="haproxy", says="HAProxy load balancer", schemes=_WEB),
            Kind(name="nginx", says="nginx edge cache or gateway", schemes=_WEB),
            Kind(name="varnish", says="Varnish edge cache", schemes=_WEB),
            Kind(name="prometheus", says="Prometheus", schemes=_WEB),
            Kind(name="alertmanager", says="Alertmanager", schemes=_WEB),
            Kind(name="grafana", says="Grafana", schemes=_WEB),
            Kind(name="rabbitmq", says="RabbitMQ broker", schemes=("amqp", "amqps"), least_bytes=256 * 2**20),
            Kind(name="nats", says="NATS JetStream broker", schemes=("nats", "tls")),
            Kind(name="kafka", says="Kafka broker", schemes=("kafka", "kafka+ssl"), given=True),
            Kind(name="sqs", says="SQS queue service", schemes=_WEB, given=True),
            Kind(name="opensearch", says="OpenSearch engine", schemes=_WEB),
            Kind(name="mongodb", says="MongoDB document store", schemes=("mongodb", "mongodb+srv")),
            Kind(
                name="timescaledb", says="TimescaleDB time-series store", schemes=("postgresql", "postgres")
            ),
            Kind(name="neo4j", says="Neo4j graph store", schemes=("neo4j", "neo4j+s", "bolt", "bolt+s")),
        )
    }
)
