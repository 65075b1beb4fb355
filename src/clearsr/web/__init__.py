"""The web page and the HTTP API of `clearsr serve` (extra `web`).

`server.py` puts together: `guard.py` (who may come in, and with how much), `api.py` (plain HTTP), `page.py`
(Gradio), and `jobs.py`, the one bounded queue that both hand their pictures to. `work.py` is what a picture
goes through there.
"""
