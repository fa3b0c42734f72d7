"""Clients that speak only memcached's classic binary protocol: python-binary-memcached, pylibmc."""

from harness import binary_from_arguments, core_counts, require, server

bmemcached, pylibmc = require("bmemcached", "pylibmc")


def python_binary_memcached(port):
    client = bmemcached.Client((f"127.0.0.1:{port}",), socket_timeout=20)
    assert client.set("key", "value", time=100)
    assert client.get("key") == "value"
    assert client.get("missing") is None
    assert not client.add("key", "other")
    assert client.add("new", "other")
    assert client.replace("key", "second")
    assert not client.replace("absent", "x")
    value, token = client.gets("key")
    assert value == "second"
    assert client.cas("key", "third", token)
    assert not client.cas("key", "fourth", token)
    assert client.get("key") == "third"
    assert client.set("number", "10")
    assert client.incr("number", 5) == 15
    assert client.decr("number", 20) == 0
    assert client.incr("fresh", 1, default=7) == 7
    many = {f"many:{i}": f"value {i}" for i in range(500)}
    assert client.set_multi(many) == []
    assert client.get_multi(list(many)) == many
    assert client.delete("key")
    assert client.get("key") is None
    # This client counts a delete of a missing key as done.
    assert client.delete("key")
    large = bytes(range(256)) * 4000
    assert client.set("large", large)
    assert client.get("large") == large
    (stats,) = client.stats().values()
    assert int(stats["curr_items"]) > 500
    assert client.flush_all()
    assert client.get("new") is None
    client.disconnect_all()


def libmemcached(port):
    client = pylibmc.Client([f"127.0.0.1:{port}"], binary=True, behaviors={"cas": True})
    assert client.set("key", b"value", time=100)
    assert client.get("key") == b"value"
    assert client.append("key", b"+")
    assert client.prepend("key", b"-")
    assert client.get("key") == b"-value+"
    value, token = client.gets("key")
    assert client.cas("key", b"swapped", token)
    try:
        assert not client.cas("key", b"again", token)
    except pylibmc.Error as error:
        assert "exists" in str(error).lower(), error
    assert client.get("key") == b"swapped"
    assert client.touch("key", 200)
    client.set("number", "41")
    assert client.incr("number") == 42
    assert client.decr("number", 50) == 0
    many = {f"many:{i}": bytes([i % 256]) * i for i in range(1000)}
    assert client.set_multi(many) == []
    assert client.get_multi(list(many)) == many
    assert client.delete_multi(list(many))
    assert client.get_multi(list(many)) == {}
    assert client.get_stats()
    client.flush_all()
    assert client.get("key") is None
    client.disconnect_all()


def main():
    binary = binary_from_arguments()
    for cores in core_counts():
        with server(binary, 64, cores) as running:
            python_binary_memcached(running.port)
            libmemcached(running.port)
            assert int(running.stats()["curr_connections"]) < 10
        print(f"python-binary-memcached and pylibmc, {cores} cores: all answers right", flush=True)


main()
