"""The embedded runtime: real Kafka, real Redis and our own processes as supervised children on free loopback ports."""
