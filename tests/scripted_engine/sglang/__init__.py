"""Stands in for SGLang in the worker tests: `launch_server` does what a test scripts it to do."""
