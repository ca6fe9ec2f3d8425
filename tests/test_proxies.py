"""A proxy of the environment is for servers elsewhere: those on this machine are asked directly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from cua_agent.envs.base import WorldUnavailable
from cua_agent.envs.gbox.box_lifecycle import open_gbox
from cua_agent.envs.gbox.settings import GBoxSettings
from cua_agent.envs.local_gbox.server import running
from cua_agent.inference.vllm.client import ControlClient, SamplingClient
from cua_agent.inference.vllm.errors import ServerMismatch, Unavailable
from cua_agent.inference.vllm.wire import Call
from cua_agent.proxies import LOCAL_HOSTS, bypass_proxies, is_local, proxy_hint, proxy_options
from tests.vllm_fakes import served

DEAD = "http://me:planted-4711@127.0.0.1:1"
GREET = Call("GET", "/greet")


@pytest.fixture(params=["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(request.param, DEAD)


@pytest.fixture
def server() -> Iterator[str]:
    app = FastAPI()
    app.get("/greet")(lambda: "hello")
    with served(app) as url:
        yield url


@pytest.mark.parametrize("others", [[], ["http://elsewhere.invalid:8000"]])
def test_a_vllm_server_of_this_machine_is_asked_directly(proxy: None, server: str, others: list[str]) -> None:
    for url in (server, server.replace("127.0.0.1", "localhost")):
        control = ControlClient(url)
        assert control.call(GREET) == "hello"
        control.close()

        async def sample(address: str) -> None:
            client = SamplingClient([address, *others], 1, 5.0)
            assert await client.call(address, GREET) == "hello"
            await client.close()

        asyncio.run(sample(url))


def test_a_server_elsewhere_is_asked_through_the_proxy_which_the_message_names(proxy: None) -> None:
    client = ControlClient("http://elsewhere.invalid:8000")
    with pytest.raises(Unavailable) as caught:
        client.call(GREET)
    client.close()
    message = str(caught.value)
    assert "through the proxy http://***@127.0.0.1:1" in message
    assert "NO_PROXY=elsewhere.invalid" in message
    assert "planted" not in message


def test_a_local_gbox_is_asked_directly(proxy: None) -> None:
    with running() as gbox:
        assert "boxes" in gbox.ledger()

        async def check() -> None:
            async with open_gbox(GBoxSettings(base_url=gbox.base_url, api_key=gbox.api_key), "fixed", 1):
                pass

        asyncio.run(check())


def test_a_gbox_elsewhere_that_does_not_answer_names_the_proxy(proxy: None) -> None:
    settings = GBoxSettings(base_url="http://elsewhere.invalid/api/v1", api_key="k", attempts=1)

    async def check() -> None:
        async with open_gbox(settings, "fixed", 1):
            pass

    with pytest.raises(WorldUnavailable, match=r"through the proxy http://\*\*\*@127.0.0.1:1"):
        asyncio.run(check())


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_one_line_and_no_matter_of_local_servers(
    value: str, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    control = ControlClient(server)
    assert control.call(GREET) == "hello"
    control.close()
    with pytest.raises(ServerMismatch, match="the environment's proxy cannot be used") as caught:
        ControlClient("http://elsewhere.invalid:8000")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.3.2.1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost", True),
        ("http://0.0.0.0:80", True),
        ("http://10.0.0.1", False),
        ("https://gbox.ai", False),
        ("http://localhost.example", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_mixed_servers_keep_the_proxy_for_the_others(proxy: None) -> None:
    client = httpx.Client(**proxy_options(["http://127.0.0.1:1", "http://[::1]:2", "http://elsewhere"]))
    direct = client._transport
    assert client._transport_for_url(httpx.URL("http://127.0.0.1:5")) is direct
    assert client._transport_for_url(httpx.URL("http://[::1]:5")) is direct
    assert client._transport_for_url(httpx.URL("http://elsewhere")) is not direct
    client.close()


def test_a_host_that_the_environment_excepts_is_not_blamed_on_the_proxy(
    proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "through the proxy" in proxy_hint("http://elsewhere")
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    assert proxy_hint("http://elsewhere") == ""
    assert proxy_hint("http://127.0.0.1") == ""


def test_libraries_are_told_by_the_environment() -> None:
    environment = {"HTTP_PROXY": DEAD, "NO_PROXY": "internal, localhost"}
    bypass_proxies([*LOCAL_HOSTS, "10.1.2.3"], environment)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "internal,localhost,127.0.0.1,::1,0.0.0.0,10.1.2.3"
    nothing: dict[str, str] = {}
    bypass_proxies(LOCAL_HOSTS, nothing)
    assert nothing == {}
