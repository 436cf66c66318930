"""The engine for machines without a GPU: the real SGLang on a CPU, serving a tiny GLM made on the spot.

- `requirements.txt` locks that SGLang; where it deviates from the stock one, a comment says so.
- `stand_in/` is the import-time stand-in for the one compiled package that is missing.
- `conversations` is what the tiny model knows by heart.
- `tiny_glm` makes and trains that model; `cache` knows whether that has been done.
- `environment` is the set of variables with which the worker serves it.

`python -m embedded COMMAND…` puts them together: it makes the model if it does not exist yet and runs the command in
that environment.
"""
