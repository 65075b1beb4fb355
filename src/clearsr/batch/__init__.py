"""Many pictures: planned as a stream, done by a pool of workers, each with its line in a manifest.

Reading order: `run.py`, `plan.py`, then `on_ray.py` or `local.py`, where `worker.py` does one picture;
`manifest.py` remembers, `storage.py` reaches folders and buckets.
"""
