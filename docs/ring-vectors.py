#!/usr/bin/env python3
"""Computes docs/ring-vectors.txt: the placement of crates/ring/src/lib.rs, written a second time.

    pip install xxhash && python3 docs/ring-vectors.py > docs/ring-vectors.txt

Slow and plain on purpose: it shares no idea with the server beyond the published rule.
"""
import hashlib
import xxhash

CIRCLE = 1 << 32


def place(hash_name, data):
    if hash_name == "md5":
        return int.from_bytes(hashlib.md5(data).digest()[:4], "big")
    return int.from_bytes(xxhash.xxh3_64_digest(data)[:4], "big")


def circle(hash_name, points_per_weight, nodes):
    points = []
    for node, weight in nodes.items():
        for i in range(points_per_weight * weight):
            points.append((place(hash_name, f"{node}:{i}".encode()), node.encode(), node))
    return sorted(points)


def preference_list(points, at, replicas):
    first = next((n for n, point in enumerate(points) if point[0] >= at), 0)
    found = []
    for point in points[first:] + points[:first]:
        if point[2] not in found and len(found) < replicas:
            found.append(point[2])
    return found


def tie():
    """Two node ids that own an equal point, and that point."""
    seen = {}
    for n in range(2000):
        node = f"tie-{n}"
        for i in range(150):
            point = place("md5", f"{node}:{i}".encode())
            if point in seen and seen[point] != node:
                return seen[point], node, point
            seen[point] = node
    raise SystemExit("no tie found")


KEYS = [b"a", b"foo", b"user:1000", b"session:7f3a", "schlüssel".encode(), b"\x00\xff\x80", b"k" * 250]
KEYS += [f"key-{n}".encode() for n in range(25)]

print("""# Golden vectors of the ring's placement. Keys are in hexadecimal, node ids as they are, places and
# points as eight hexadecimal digits of a 32-bit circle. Made by docs/ring-vectors.py.
#
#   place HASH KEY PLACE                 where a key lies
#   point HASH NODE I PLACE              where point I of a node lies
#   ring NAME HASH POINTS REPLICAS NODE=WEIGHT...
#   share NAME NODE LENGTH               length of the circle that a node owns, in 2^-32 of it
#   list NAME KEY NODE...                a key's preference list
#   at NAME PLACE NODE...                the preference list at a place
""")
for hash_name in ("md5", "xxh3"):
    for key in KEYS:
        print(f"place {hash_name} {key.hex()} {place(hash_name, key):08x}")
    for node in ("node-1", "10.0.0.1:11211", "größe"):
        for i in (0, 1, 9, 10, 149, 150, 14999):
            print(f"point {hash_name} {node} {i} {place(hash_name, f'{node}:{i}'.encode()):08x}")

one, other, tied = tie()
RINGS = {
    "single": ("md5", 150, 3, {"node-1": 1}),
    "three": ("md5", 150, 3, {f"node-{n}": 1 for n in (1, 2, 3)}),
    "weighted": ("md5", 150, 2, {"a": 1, "b": 2, "c": 4, "d": 1}),
    "ten": ("md5", 150, 3, {f"node-{n}": 1 for n in range(1, 11)}),
    "ten-xxh3": ("xxh3", 150, 8, {f"node-{n}": 1 for n in range(1, 11)}),
    "sparse": ("md5", 1, 3, {f"n{n}": 1 for n in range(5)}),
    "tied": ("md5", 150, 2, {one: 1, other: 1}),
}
for name, (hash_name, count, replicas, nodes) in RINGS.items():
    points = circle(hash_name, count, nodes)
    print(f"ring {name} {hash_name} {count} {replicas}", *(f"{n}={w}" for n, w in nodes.items()))
    lengths = dict.fromkeys(nodes, 0)
    before = points[-1][0] - CIRCLE
    for point, _, node in points:
        lengths[node] += point - before
        before = point
    for node, length in lengths.items():
        print(f"share {name} {node} {length}")
    for key in KEYS:
        print(f"list {name} {key.hex()}", *preference_list(points, place(hash_name, key), replicas))
    places = {0, CIRCLE - 1, points[0][0], points[-1][0], (points[-1][0] + 1) % CIRCLE}
    places |= {(points[len(points) // 2][0] + step) % CIRCLE for step in (-1, 0, 1)}
    if name == "tied":
        places |= {tied - 1, tied, tied + 1}
    for at in sorted(places):
        print(f"at {name} {at:08x}", *preference_list(points, at, replicas))
