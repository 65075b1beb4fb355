"""Many pictures: planned as a stream, done by a pool of workers, each with its line in a manifest.

Reading order: `run.py`, `spool.py`, then `on_ray.py` or `local.py`, where `worker.py` does one picture;
`manifest.py` remembers. What becomes what is decided in `files/plan.py`.
"""
