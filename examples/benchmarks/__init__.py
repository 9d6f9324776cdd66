"""The parts of examples/benchmark.py: measuring, the models, the published way, and the sections of the report."""
