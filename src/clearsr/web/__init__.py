"""The web page and the HTTP API of `clearsr serve`.

`server.py` puts together: `access.py` (who may come in), `bodies.py` (with how much), `api.py` and
`job_routes.py` (what there is), and `jobs.py`, the one bounded queue that all pictures go through. What a
picture goes through there is in `upscaler.py`, the page itself in `page/`.
"""
