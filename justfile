# The commands of CONTRIBUTING.md by name. Each step lives in .ci/run, which CI runs as a whole.

# All steps, as CI runs them.
ci:
    .ci/run

# Installs the clients and the reference server used by the tests.
tools:
    .ci/run tools

fmt:
    cargo fmt --all

lint:
    .ci/run fmt lint

# The pure core alone: no executor, sockets or clock. Fast to build and test.
pure:
    .ci/run pure
    cargo test -p ringlane-types -p ringlane-ring -p ringlane-protocol -p ringlane-shard -p ringlane-cluster -p ringlane-engine

test:
    .ci/run test

# Real clients only, with their output.
clients:
    cargo test --test clients -- --nocapture

# All attacks in random order on the release build, with the bystander's latency for each.
attacks seconds="3600":
    RINGLANE_ATTACK_SECONDS={{seconds}} .ci/run attacks

# Verified writes, on the release build.
conservation seconds="1800":
    RINGLANE_CONSERVATION_SECONDS={{seconds}} .ci/run conservation

fuzz seconds="60":
    FUZZ_SECONDS={{seconds}} .ci/run fuzz

# Benchmarks in wall time; for figures independent of machine noise, see `instructions`.
bench:
    cargo bench --bench parsers --bench shard --bench ttl_wheel --bench ring --bench mesh

# Instructions per request against benches/instructions.baseline.
instructions:
    .ci/run instructions

doc:
    .ci/run doc
