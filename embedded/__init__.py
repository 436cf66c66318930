"""The engine for machines without a GPU: the real SGLang on a CPU, serving a tiny GLM made on the spot.

- `requirements.txt` locks that SGLang, with its deviations from stock written beside each.
- `stand_in/` holds the import-time stand-in for the one compiled package it lacks.
- `conversations` is what the tiny model knows by heart.
- `tiny_glm` makes and trains that model; `cache` knows whether that has been done.
- `environment` is the set of variables under which the worker serves it.

`python -m embedded COMMAND…` puts them together: it makes the model if it is not there yet and runs the command in
that environment.
"""
