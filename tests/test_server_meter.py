"""The figures of vLLM's servers in a step's row, against pages as vLLM 0.32 writes them."""

from __future__ import annotations

from math import isnan

import pytest
from fastapi import FastAPI, Response

from tests.vllm_fakes import served
from trainers.run.server_meter import ServerFigures, ServerMeter, figures, totals

PAGE = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a model"} 3.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a model"} TOKENS
vllm:generation_tokens_total{engine="1",model_name="a model"} 1.0e+02
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf",model_name="a model"} 10.0
vllm:request_queue_time_seconds_count{engine="0",model_name="a model"} 10.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="a model"} 0.5
process_open_fds 31.0
"""


class Server:
    """A page of metrics; a whole server has more."""

    def __init__(self) -> None:
        self.page, self.status = PAGE.replace("TOKENS", "50.0"), 200

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/metrics")(lambda: Response(self.page, self.status, media_type="text/plain; version=1.0.0"))
        return app


def test_values_are_summed_over_labels() -> None:
    found = totals(PAGE.replace("TOKENS", "50.0"))
    assert found["vllm:generation_tokens_total"] == 150.0
    assert found["process_open_fds"] == 31.0
    with pytest.raises(ValueError, match="could not convert"):
        totals("<html> no page </html>")


def counted(tokens: float, queued_s: float, requests: float) -> dict[str, float]:
    queue = "vllm:request_queue_time_seconds"
    return {"vllm:generation_tokens_total": tokens, f"{queue}_sum": queued_s, f"{queue}_count": requests}


def test_figures_by_hand() -> None:
    before, after = [counted(100, 1, 10), counted(0, 0, 0)], [counted(400, 3, 14), counted(100, 0.25, 1)]
    assert figures(before, after, 2.0) == ServerFigures(tokens_per_s=200.0, queue_s=0.45)
    idle = figures(after, after, 2.0)
    assert idle.tokens_per_s == 0.0 and isnan(idle.queue_s)
    restarted = [counted(900, 4, 20), counted(10, 0, 0)]
    assert isnan(figures(after, restarted, 2.0).tokens_per_s)


def test_a_step_hears_of_all_servers_or_of_none() -> None:
    one, two = Server(), Server()
    with served(one.app()) as first, served(two.app()) as second:
        meter = ServerMeter([first, second])
        assert isnan(meter.look().tokens_per_s)  # since when?
        assert meter.look().tokens_per_s == 0
        one.page = PAGE.replace("TOKENS", "450.0")
        assert meter.look().tokens_per_s > 0
        two.status = 404  # a server whose statistics are switched off
        assert isnan(meter.look().tokens_per_s) and isnan(meter.look().queue_s)
        two.status, two.page = 200, "no page"
        assert isnan(meter.look().tokens_per_s)
    assert isnan(meter.look().tokens_per_s)  # both are gone
    meter.close()
    assert isnan(ServerMeter([]).look().tokens_per_s)
