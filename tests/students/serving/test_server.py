"""Real server processes under load, and how they stop."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
import requests

from distill.errors import UserError
from students.serving.models import Model
from students.serving.server import serve

BODY = b'{"prompt": "hello"}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
HEAD += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"

# A client process with several threads, each of which sends its own prompts one after another.
CLIENT = """
import json, sys, threading, time, requests
url, threads, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
wrong = []
def client(number):
    with requests.Session() as session:
        for turn in range(each):
            prompt = f"client {number} turn {turn}"
            answer = session.post(f"{url}/v1/completions", json={"prompt": prompt}, timeout=60)
            if answer.status_code != 200 or answer.json()["choices"][0]["text"] != prompt:
                wrong.append(answer.text)
clients = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
began = time.perf_counter()
[client.start() for client in clients]
[client.join() for client in clients]
print(json.dumps({"wrong": wrong, "seconds": time.perf_counter() - began}))
"""


def load(server, threads: int, each: int) -> float:
    """Run a process of ``threads`` clients with ``each`` prompts and check their answers. Returns its seconds."""
    command = [sys.executable, "-c", CLIENT, server.url, str(threads), str(each)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["wrong"] == [], done.stderr
    return found["seconds"]


def connection_to(server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_under_load_each_client_gets_its_own_answers_and_requests_share_batches(echo_server):
    with echo_server(seconds=0.02) as server:
        load(server, threads=16, each=12)
        assert server.metric("requests_total", status="200") == 16 * 12
        assert server.metric("batch_size_sum") == 16 * 12
        # 16 clients that wait for their answers make far fewer batches than requests.
        assert server.metric("batch_size_count") < 16 * 12 / 4


def test_batching_reduces_the_number_of_batches(echo_server):
    """If a batch takes the same time whatever its size, fewer batches mean more requests per second."""
    with echo_server(seconds=0.05) as batching, echo_server(max_batch=1) as one_by_one:
        load(batching, threads=8, each=6)
        load(one_by_one, threads=8, each=6)
        assert one_by_one.metric("batch_size_count") == 8 * 6
        assert batching.metric("batch_size_count") <= 8 * 6 / 3


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(echo):
    """Header and body are sent separately. With Nagle's algorithm, the body of a warm connection is 40 ms late."""
    seconds = []
    with requests.Session() as session:
        for _ in range(30):
            began = time.perf_counter()
            session.post(f"{echo.url}/v1/completions", json={"prompt": "hello"})
            seconds.append(time.perf_counter() - began)
    assert min(seconds[10:]) < 0.03


def test_a_full_queue_is_answered_429_and_waiting_prompts_are_served(echo_server, pool):
    with echo_server(max_queue=4, max_batch=2) as server:
        with server.held():
            first = pool.submit(server.complete, "in the worker")
            time.sleep(0.3)
            waiting = [pool.submit(server.complete, f"waiting {k}") for k in range(4)]
            server.until(lambda: server.metric("waiting_prompts") == 4)
            refused = server.complete("one too many")
            assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert "4 prompts are waiting" in refused.json()["error"]["message"]
        assert [answer.result().status_code for answer in (first, *waiting)] == [200] * 5
        assert server.complete("again").ok
        assert server.metric("requests_total", status="429") == 1


def test_a_request_that_times_out_is_answered_408_and_not_computed(echo_server, pool):
    with echo_server(timeout=0.5) as server:
        with server.held():
            first = pool.submit(server.complete, "slow")
            time.sleep(0.2)
            second = pool.submit(server.complete, "waits")
            for answer in (first, second):
                assert answer.result().status_code == 408
                assert "no answer within 0.5 seconds" in answer.result().json()["error"]["message"]
        assert server.complete("quick").ok
        assert server.metric("batch_size_sum") == 2  # the batches of "slow" and "quick"; "waits" was not computed


def test_a_body_that_never_ends_is_answered_408(echo_server):
    with echo_server(timeout=0.5) as server, connection_to(server) as connection:
        connection.sendall(HEAD % 100 + b'{"prompt": ')
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert server.complete("quick").ok


def test_the_prompts_of_a_disconnected_client_are_skipped(echo_server, pool):
    with echo_server() as server:
        with server.held():
            first = pool.submit(server.complete, "stays")
            time.sleep(0.2)
            with connection_to(server) as connection:
                connection.sendall(HEAD % len(BODY) + BODY)
                server.until(lambda: server.metric("waiting_prompts") == 1)
            server.until(lambda: server.metric("waiting_prompts") == 0)
        assert first.result().ok
        assert server.metric("batch_size_sum") == 1 and server.metric("requests_total", status="499") == 1


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_on_a_signal_the_server_answers_accepted_requests_and_accepts_no_new_ones(echo_server, pool, kind):
    with echo_server(max_batch=2) as server:
        with server.held():
            answers = [pool.submit(server.complete, f"request {k}") for k in range(9)]
            server.until(lambda: server.metric("waiting_prompts") >= 7)
            server.process.send_signal(kind)
            time.sleep(0.5)
            with pytest.raises(requests.ConnectionError):
                server.complete("too late")
            assert server.process.poll() is None
        texts = [answer.result().json()["choices"][0]["text"] for answer in answers]
        assert texts == [f"request {k}" for k in range(9)]
        assert server.process.wait(10) == 0


def test_stopping_under_load_loses_no_answer(echo_server, pool):
    """Clients send requests until a connection is refused. Every accepted request is answered."""

    def client(number: int) -> tuple[int, int]:
        answered = refused = 0
        while refused == 0:
            try:
                response = server.complete(f"client {number}")
                assert response.json()["choices"][0]["text"] == f"client {number}"
                answered += 1
            except requests.ConnectionError:
                refused += 1
        return answered, refused

    with echo_server(seconds=0.02) as server:
        clients = [pool.submit(client, number) for number in range(12)]
        time.sleep(1)
        served = server.metric("requests_total", status="200")
        server.process.terminate()
        results = [one.result(30) for one in clients]
        assert server.process.wait(10) == 0
        assert sum(answered for answered, _ in results) >= served > 12


def test_an_unfinished_request_does_not_delay_a_stop(echo_server):
    with echo_server(timeout=0.5) as server, connection_to(server) as connection:
        connection.sendall(HEAD % 100 + b'{"prompt": ')
        server.process.terminate()
        assert server.process.wait(10) == 0


def test_idle_connections_do_not_delay_a_stop(echo_server):
    with echo_server() as server:
        address = urlsplit(server.url)
        kept = http.client.HTTPConnection(address.hostname, address.port)
        kept.request("GET", "/health")
        assert kept.getresponse().read() == b'{"status":"ok"}'
        with connection_to(server):
            server.process.terminate()
            assert server.process.wait(10) == 0


def test_health_is_503_until_the_model_answers(held_echo):
    process, hold, url = held_echo
    wait_for(lambda: requests.get(f"{url}/health").status_code == 503)
    answer = requests.post(f"{url}/v1/completions", json={"prompt": "hello"})
    assert answer.status_code == 503 and "echo is still loading" in answer.json()["error"]["message"]
    assert not requests.get(f"{url}/v1/models").json()["data"][0]["ready"]
    hold.unlink()
    wait_for(lambda: requests.get(f"{url}/health").status_code == 200)
    assert requests.post(f"{url}/v1/completions", json={"prompt": "hello"}).ok


def test_a_server_can_be_stopped_while_it_loads(held_echo):
    process, hold, url = held_echo
    wait_for(lambda: requests.get(f"{url}/health").status_code == 503)
    process.terminate()
    hold.unlink()
    assert process.wait(10) == 0


def test_a_model_that_cannot_be_loaded_and_a_port_in_use_are_errors():
    def broken():
        raise UserError("there are no weights in it; export it again")

    with pytest.raises(UserError, match="there are no weights"):
        serve([Model("broken", broken)], "127.0.0.1", 0, say=print)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another --port"):
        serve([Model("broken", broken)], "127.0.0.1", taken.getsockname()[1], say=print)
    with pytest.raises(UserError, match="cannot listen on 192.0.2.1"):
        serve([Model("broken", broken)], "192.0.2.1", 0, say=print)


def wait_for(condition) -> None:
    """Wait until ``condition`` holds, also for a server that does not listen yet."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(requests.ConnectionError):
            if condition():
                return
        time.sleep(0.02)
    pytest.fail("the condition did not hold within 20 s")
