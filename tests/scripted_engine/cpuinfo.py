"""Stands in for py-cpuinfo in the worker tests.

Whenever RunPod's SDK is imported, it asks for the processor's name, for a debugger that nothing here uses. That costs a
second of CPU, for each of some three hundred workers.
"""

from __future__ import annotations


def get_cpu_info() -> dict[str, str]:
    return {"brand_raw": "a processor"}
