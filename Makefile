# walpost: every command that a newcomer needs. `make` lists them.

.PHONY: help demo test lint unit prove soak bench doc clean

help:
	@echo 'make demo    orders from a private PostgreSQL 18 through walpost into NATS (SINK=kafka|rabbitmq|stdout)'
	@echo 'make test    format, clippy, docs, all tests on real servers; installs what is missing'
	@echo 'make prove   plants faults in a copy of the tree; each must be caught by a test'
	@echo 'make soak    the seeded kill -9 loop, KILLS=1000 a pair by default; writes target/soak.md'
	@echo 'make bench   backlog drain, latency and start-up, each against its yardstick'

demo:
	@scripts/demo $(or $(SINK),nats)

test:
	@scripts/test

prove:
	@scripts/prove

soak:
	@scripts/soak $(or $(KILLS),1000)

bench:
	@scripts/bench
