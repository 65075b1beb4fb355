"""What Prometheus is told at /metrics; each server has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clearsr.web.jobs import JobQueue


class Metrics:
    """Counters of a server, and its queue's length at the moment of asking."""

    def __init__(self, queue: JobQueue) -> None:
        self._registry = CollectorRegistry()
        self.responses = Counter(
            "clearsr_http_responses_total", "Responses by status", ["status"], registry=self._registry
        )
        self.pictures = Counter(
            "clearsr_pictures_total", "Pictures by outcome", ["outcome"], registry=self._registry
        )
        self.seconds = Histogram(
            "clearsr_picture_seconds", "Time from upload to result, waiting included",
            buckets=(0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600), registry=self._registry,
        )  # fmt: skip
        running = Gauge("clearsr_jobs_running", "Pictures at work", registry=self._registry)
        running.set_function(lambda: queue.counts()[0])
        waiting = Gauge("clearsr_jobs_waiting", "Places of the queue taken", registry=self._registry)
        waiting.set_function(lambda: queue.counts()[1])

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
