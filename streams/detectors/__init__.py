"""Detectors of change: pure functions of (state, batch). States are plain data, time is the stream's, nothing here knows Kafka.

``contract`` says what a detector is; ``losses`` and ``shapes`` decide; ``distances`` and ``second_opinion`` are for people to read.
"""
