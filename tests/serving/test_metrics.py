from __future__ import annotations

from llmcls.serving.metrics import Metrics


def test_two_servers_in_a_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count_request(200, 0.3)
    first.passes.labels("run_0").inc()
    first.watch_waiting(lambda: 7)
    page = first.text().decode()
    for line in (
        'llmcls_requests_total{status="200"} 1.0',
        'llmcls_passes_total{run="run_0"} 1.0',
        'llmcls_request_seconds_bucket{le="0.25"} 0.0',
        'llmcls_request_seconds_bucket{le="0.5"} 1.0',
        "llmcls_waiting_texts 7.0",
    ):
        assert line in page.splitlines()
    assert 'status="200"' not in second.text().decode()
