# The commands of CONTRIBUTING.md by name. Each step lives in .ci/run, which CI runs as a whole.

# All steps, as CI runs them.
ci:
    .ci/run

# Installs the clients and the reference server that the tests drive.
tools:
    .ci/run tools

fmt:
    cargo fmt --all

lint:
    .ci/run fmt lint

# The pure core alone: no executor, sockets or clock. Fast to build and test.
pure:
    .ci/run pure
    cargo test -p ringlane --lib --no-default-features

test:
    .ci/run test

# Real clients only, with their output.
clients:
    cargo test --test clients -- --nocapture

fuzz seconds="60":
    FUZZ_SECONDS={{seconds}} .ci/run fuzz

bench:
    cargo bench

doc:
    .ci/run doc
