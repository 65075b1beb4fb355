"""Jobs over HTTP: an id at once, events to the end, the result in every format, cancelling, comparisons."""

import errno
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clearsr.config.sampling import SizeConfig
from clearsr.web import runs, upscaler
from clearsr.web.description import GROUPS, PRESETS
from clearsr.web.fields import DIAL, SAMPLING_FIELDS
from clearsr.web.upscaler import Upscaler


def begin(client, content, name="photo.png", route="/v1/jobs", **fields):
    response = client.post(route, files={"file": (name, content)}, data=fields)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return response.json()


def events_of(client, job):
    """(name, data) of each event, to the end."""
    text = client.get(job["events"]).text
    blocks = [block.split("\n") for block in text.split("\n\n") if "event: " in block]
    pairs = [{line.partition(": ")[0]: line.partition(": ")[2] for line in block} for block in blocks]
    return [(pair["event"], json.loads(pair["data"])) for pair in pairs]


def error_of(response):
    error = response.json()["error"]
    assert error["status"] == response.status_code
    return error["code"]


def shape_of(response):
    with Image.open(io.BytesIO(response.content)) as image:
        return image.format, image.size


def test_from_upload_to_result(serve, picture):
    with serve() as client:
        job = begin(client, picture(), "a b#.png", upscale="2", steps="3", detail="-50", seed="5")
        events = events_of(client, job)
        name, done = events[-1]
        assert name == "done"
        assert (done["width"], done["height"], done["warnings"]) == (48, 32, [])
        assert done["file"] == "a b#_x2.png"
        assert "--alpha 0.03" in done["command"] and "--beta 0.01" in done["command"]
        assert all(data["id"] == job["id"] and data["state"] == name for name, data in events)
        result = client.get(done["result"])
        assert len(result.content) == done["bytes"]
        plain = {"upscale": "2", "steps": "3", "alpha": "0.03", "beta": "0.01", "seed": "5"}
        same = client.post("/v1/upscale", files={"file": ("a b#.png", picture())}, data=plain)
        assert result.content == same.content
        assert client.get(f"/v1/jobs/{job['id']}").json() == done
        assert 'clearsr_pictures_total{outcome="done"} 2.0' in client.get("/metrics").text


def test_every_format_comes_of_the_one_result(serve, picture, monkeypatch):
    with serve() as client:
        job = begin(client, picture(), upscale="2")
        events_of(client, job)
        runs_before = client.get("/metrics").text.count("outcome")
        monkeypatch.setattr(Upscaler, "upscale", None)  # no second run
        kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "avif": "AVIF"}
        for name, kind in kinds.items():
            response = client.get(f"{job['result']}?format={name}")
            assert shape_of(response) == (kind, (48, 32)), name
            assert "photo_x2." in response.headers["content-disposition"]
        rough, fine = (client.get(f"{job['result']}?format=jpg&quality={q}") for q in (20, 95))
        assert len(rough.content) < len(fine.content)
        assert client.get("/metrics").text.count("outcome") == runs_before
        monkeypatch.undo()
        once = client.post(
            "/v1/upscale", files={"file": ("photo.png", picture())}, data={"upscale": "2", "format": "jpg"}
        )
        assert client.get(f"{job['result']}?format=jpg").content == once.content


def test_what_a_format_lacks_is_told_with_it(serve):
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    Image.fromarray(levels).save(file, "PNG")
    with serve() as client:
        job = begin(client, file.getvalue(), upscale="2")
        assert events_of(client, job)[-1][1]["warnings"] == []  # PNG holds transparency
        told = json.loads(client.get(f"{job['result']}?format=jpg").headers["X-ClearSR-Warnings"])
        assert [notice["kind"] for notice in told] == ["transparency"]
        again = client.get(f"{job['result']}?format=jpg").headers["X-ClearSR-Warnings"]
        assert json.loads(again) == told


def test_a_copy_is_written_as_the_job_was_to_be(serve, picture):
    with serve() as client:
        fields = {"upscale": "2", "tiff_compression": "none", "keep_metadata": "false"}
        job = begin(client, picture(), **fields)
        events_of(client, job)
        files = {"file": ("photo.png", picture())}
        once = client.post("/v1/upscale", files=files, data={**fields, "format": "tiff"})
        assert client.get(f"{job['result']}?format=tiff").content == once.content


def test_copies_are_few_and_none_is_made_twice(serve, picture):
    with serve() as client:
        job = begin(client, picture(), upscale="1")
        events_of(client, job)
        folder = client.server.service.find(job["id"]).folder
        for quality in ("90", "090", "+90"):
            asked = {"format": "jpg", "quality": quality}
            assert client.get(job["result"], params=asked).status_code == 200
        assert len(list(folder.glob("copy-*/*"))) == 1
        for quality in range(1, 31):
            assert client.get(f"{job['result']}?format=jpg&quality={quality}").status_code == 200
        assert len(list(folder.glob("copy-*/*"))) == runs.MOST_COPIES
        assert client.get(f"{job['result']}?format=jpg&quality=1").status_code == 200


def test_a_result_is_kept_while_it_is_asked_for(serve, picture, monkeypatch):
    with serve() as client:
        job = begin(client, picture(), upscale="1")
        events_of(client, job)
        spool = client.server.service.spool
        monkeypatch.setattr(spool, "_age", 1e-9)  # it has become old, and nobody has looked yet
        monkeypatch.setattr(spool, "_kept", dict.fromkeys(spool._kept, 0.0))
        response = client.get(f"{job['result']}?format=jpg")
        assert response.status_code == 200 or error_of(response) == "no_such_job"


def test_deleted_in_the_middle_of_a_copy(serve, picture, monkeypatch):
    with serve() as client:
        job = begin(client, picture(), upscale="1")
        events_of(client, job)
        real = upscaler.copy_of

        def copy_of(*given):
            client.delete(f"/v1/jobs/{job['id']}")
            return real(*given)

        monkeypatch.setattr(upscaler, "copy_of", copy_of)
        assert error_of(client.get(f"{job['result']}?format=jpg")) == "no_such_job"


def test_what_is_old_goes_even_if_nobody_comes(serve, picture):
    with serve(keep_minutes=0.01) as client:
        root = client.server.service.spool.root
        job = begin(client, picture(), upscale="1")
        events_of(client, job)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and len(list(root.iterdir())) > 1:
            time.sleep(0.05)
        assert [path.name for path in root.iterdir()] == ["lock"]


def test_a_full_disk_and_a_bug_leave_nothing_and_are_counted(serve, picture, monkeypatch):
    files = {"file": ("a.png", picture())}

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    with serve() as client:
        root = client.server.service.spool.root
        for route in ("/v1/upscale", "/v1/jobs", "/v1/comparisons", "/v1/look"):
            with monkeypatch.context() as patch:
                patch.setattr("starlette.datastructures.UploadFile.read", full)
                assert error_of(client.post(route, files=files)) == "no_storage"
            with monkeypatch.context() as patch:
                patch.setattr(Upscaler, "check", lambda *_: 1 / 0)
                assert error_of(client.post(route, files=files)) == "internal_error"
            assert [path.name for path in root.iterdir()] == ["lock"]
        told = client.get("/metrics").text
        assert 'outcome="no_storage"} 3.0' in told and 'outcome="internal_error"} 3.0' in told


def test_pictures_to_be_looked_at_do_not_hold_up_the_others(serve, picture, monkeypatch):
    free, look = threading.Event(), Upscaler.look

    def slow(self, *given):
        assert free.wait(60)
        return look(self, *given)

    monkeypatch.setattr(Upscaler, "look", slow)
    files = {"file": ("a.png", picture())}
    with serve() as client, ThreadPoolExecutor(41) as pool:
        looks = [pool.submit(client.post, "/v1/look", files=files) for _ in range(40)]
        time.sleep(1)
        other = pool.submit(client.post, "/v1/upscale", files=files, data={"upscale": "1"})
        try:
            assert other.result(20).status_code == 200
        finally:
            free.set()
        assert {one.result(60).status_code for one in looks} == {200}


@pytest.mark.parametrize("query", ["format=exe", "format=jpg&quality=101", "quality=5", "seed=1"])
def test_a_format_that_is_none(serve, picture, query):
    with serve() as client:
        job = begin(client, picture(), upscale="1")
        events_of(client, job)
        assert error_of(client.get(f"{job['result']}?{query}")) == "bad_setting"


def test_events_tell_the_place_the_steps_and_the_end(serve, picture, monkeypatch):
    at_step, go_on, upscale = threading.Event(), threading.Event(), Upscaler.upscale

    def slow(self, ticket, source, *others):
        ticket.report(1, 3, source.name)
        at_step.set()
        assert go_on.wait(30)
        if source.name == "c.png":
            time.sleep(1)  # several looks long, however fast the picture itself is done
        return upscale(self, ticket, source, *others)

    monkeypatch.setattr(Upscaler, "upscale", slow)
    with serve() as client:
        first, second, third = (begin(client, picture(), f"{n}.png", steps="2") for n in "abc")
        assert at_step.wait(30)
        assert (third["state"], third["ahead"]) == ("queued", 1)
        assert client.get(f"/v1/jobs/{second['id']}").json()["ahead"] == 0
        state = client.get(f"/v1/jobs/{first['id']}").json()
        assert (state["state"], state["done"], state["steps"]) == ("step", 1, 3)
        assert error_of(client.get(first["result"])) == "not_done"
        threading.Timer(0.5, go_on.set).start()
        names = [name for name, _ in events_of(client, third)]
        assert names[0] == "queued" and names[-1] == "done" and "step" in names
        assert [name for name, _ in events_of(client, first)] == ["done"]  # to who comes late, the end


def test_early_looks(serve, picture):
    with serve() as client:
        job = begin(client, picture(64, 48), steps="40", upscale="4")
        shown = None
        deadline = time.monotonic() + 60
        while shown is None and time.monotonic() < deadline:
            state = client.get(f"/v1/jobs/{job['id']}").json()
            shown = state.get("preview")
            assert state["state"] != "done", "too fast to be looked at"
        response = client.get(shown)
        assert shape_of(response)[0] == "JPEG"
        folder = client.server.service.find(job["id"]).folder
        addresses = {shown}
        while (state := client.get(f"/v1/jobs/{job['id']}").json())["state"] == "step" and len(addresses) < 3:
            addresses.add(state["preview"])
        assert len(addresses) > 1 or state["done"] < 4  # a look has an address of its own, and keeps it
        assert len(list(folder.rglob("preview*"))) == 1
        client.delete(f"/v1/jobs/{job['id']}")


def test_deleting_ends_the_work_and_the_files(serve, picture):
    with serve() as client:
        root = client.server.service.spool.root
        waiting = begin(client, picture(200, 150), steps="100")
        working = begin(client, picture(), steps="1")
        for job in (waiting, working):
            assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
            assert error_of(client.get(f"/v1/jobs/{job['id']}")) == "no_such_job"
            assert error_of(client.delete(f"/v1/jobs/{job['id']}")) == "no_such_job"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and [path for path in root.iterdir() if path.name != "lock"]:
            time.sleep(0.05)
        assert [path.name for path in root.iterdir()] == ["lock"]
        assert client.server.service.queue.counts() == (0, 0)
        assert 'outcome="cancelled"' in client.get("/metrics").text


def test_what_goes_wrong_is_the_last_event(serve, picture):
    with serve() as client:
        broken = picture(64, 64)[:-40]
        job = begin(client, broken, "broken.png")
        name, data = events_of(client, job)[-1]
        assert (name, data["error"]["code"]) == ("failed", "bad_image")
        assert data["error"]["message"].startswith("broken.png: ")
        assert error_of(client.get(job["result"])) == "bad_image"
        for content, fields, code in (
            (b"hello", {}, "not_an_image"),
            (picture(), {"steps": "-1"}, "bad_setting"),
            (picture(), {"stepz": "1"}, "bad_setting"),
            (picture(), {"format": "jpg"}, "bad_setting"),  # is asked for with the result
            (picture(), {"upscale": "64"}, None),
        ):
            response = client.post("/v1/jobs", files={"file": ("a.png", content)}, data=fields)
            assert (code is None and response.status_code == 201) or error_of(response) == code, fields
        assert 'outcome="not_an_image"' in client.get("/metrics").text


def test_comparing_alpha_and_beta(serve, picture):
    with serve() as client:
        job = begin(client, picture(40, 30), route="/v1/comparisons", upscale="2", steps="2")
        name, done = events_of(client, job)[-1]
        assert name == "done"
        assert (len(done["alphas"]), len(done["betas"]), len(done["cells"])) == (3, 3, 9)
        assert shape_of(client.get(done["cells"][8])) == ("PNG", (80, 60))
        assert error_of(client.get(f"/v1/jobs/{job['id']}/cells/9")) == "no_cell"
        assert error_of(client.get(job["result"])) == "no_result"
        settings = {"upscale": "2", "steps": "2", "alpha": done["alphas"][2], "beta": done["betas"][1]}
        one = client.post("/v1/upscale", files={"file": ("photo.png", picture(40, 30))}, data=settings)
        (cell,) = [client.get(done["cells"][7])]
        with Image.open(io.BytesIO(one.content)) as a, Image.open(io.BytesIO(cell.content)) as b:
            assert np.array_equal(np.asarray(a), np.asarray(b))


def test_a_picture_that_browsers_do_not_show(serve):
    file = io.BytesIO()
    levels = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 20
    Image.fromarray(levels).save(file, "TIFF")
    with serve() as client:
        response = client.post("/v1/look", files={"file": ("a.tif", file.getvalue())})
        assert response.headers["X-ClearSR-Size"] == "60x40"
        assert shape_of(response) == ("PNG", (60, 40))
        assert error_of(client.post("/v1/look", files={"file": ("a.tif", b"II*\0")})) == "not_an_image"
        assert [path.name for path in client.server.service.spool.root.iterdir()] == ["lock"]


def test_a_large_one_is_looked_at_small(serve, picture):
    with serve() as client:
        response = client.post("/v1/look", files={"file": ("a.png", picture(3000, 40))})
        assert response.headers["X-ClearSR-Size"] == "3000x40"
        assert shape_of(response)[1] == (2048, 27)


def test_estimates(serve, tiny_pipeline):
    with serve() as client:
        query = {
            "picture_width": 100,
            "picture_height": 50,
            "upscale": 3,
            "detail": 50,
            "name": "my photo.jpg",
        }
        told = client.get("/v1/estimate", params=query).json()
        assert (told["result_width"], told["result_height"]) == (300, 150)
        assert "seconds" not in told  # nothing is measured yet
        assert told["command"].startswith("clearsr upscale 'my photo.jpg' --upscale 3")
        assert (told["alpha"], told["beta"], told["detail"]) == (0.005, 0.01, 50)
        client.server.service.model.get().measure(lambda: False)
        quick, slow = (
            client.get("/v1/estimate", params={**query, "steps": n}).json()["seconds"] for n in (1, 90)
        )
        assert 0 < quick < slow
        sides = ({"picture_width": 0}, {"picture_height": "x"}, {"picture_width": 10**7})
        for wrong in (*sides, {"stepz": 1}, {"steps": 1e9}):
            assert error_of(client.get("/v1/estimate", params={**query, **wrong})) == "bad_setting"
        large = client.get(
            "/v1/estimate", params={**query, "picture_width": 90_000, "picture_height": 90_000}
        )
        assert error_of(large) == "too_many_pixels"


def test_the_page_gets_every_setting_with_its_help(serve):
    with serve(max_steps=30) as client:
        told = client.get("/v1/settings").json()
        fields = {field["field"]: field for group in told["groups"] for field in group["fields"]}
        offered = {name for names in GROUPS.values() for name in names}
        sizes = {"upscale", *SizeConfig.model_fields}  # what the page has its own controls for
        assert offered | sizes >= set(SAMPLING_FIELDS)
        assert offered - set(fields) == {"negative_prompt"}  # this model takes no text
        assert all(field["help"] and field["label"] for field in fields.values())
        assert (fields["steps"]["maximum"], fields["steps"]["minimum"]) == (30, 0)
        assert fields["color"]["choices"] == ["wavelet", "adain", "none"]
        assert fields["lsa.target"]["choices"] == ["step", "z_0"]
        assert fields["alpha"]["default"] is None and fields["keep_metadata"]["default"] is True
        assert all(DIAL[0][0] < position < DIAL[-1][0] for position in PRESETS.values())
        assert [form["quality"] for form in told["formats"]] == [None, 95, 95, None, 90]
        assert told["examples"] is None  # nobody has prepared them
        assert error_of(client.get("/v1/examples/cat.png")) == "not_here"


def test_the_description_has_every_route(serve):
    with serve() as client:
        described = client.get("/openapi.json").json()["paths"]
        app = client.server.bodies._app
        there = {route.path.replace(":int", ""): route.methods - {"HEAD"} for route in app.routes}
        for path in ("/page/{name}", "/openapi.json"):  # for browsers, and itself
            del there[path]
        assert {path: {name.upper() for name in methods} for path, methods in described.items()} == there


def test_runs_that_are_done_are_forgotten_in_the_end(serve, picture, monkeypatch):
    monkeypatch.setattr(runs, "MOST_RUNS", 2)
    with serve() as client:
        jobs = []
        for n in range(4):
            jobs.append(begin(client, picture(), f"{n}.png", upscale="1"))
            events_of(client, jobs[-1])
        codes = [client.get(f"/v1/jobs/{job['id']}").status_code for job in jobs]
        assert codes == [404, 404, 200, 200]


def test_the_page_and_its_files(serve):
    with serve(with_page=True) as client:
        page = client.get("/")
        assert page.headers["cache-control"] == "no-cache"
        assert page.headers["content-encoding"] == "gzip"
        for name in ("clearsr.css", "clearsr.js"):
            (address,) = {part for part in page.text.split('"') if part.startswith(f"/page/{name}?")}
            asset = client.get(address)
            assert "immutable" in asset.headers["cache-control"]
            unchanged = client.get(address, headers={"If-None-Match": asset.headers["etag"]})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            plain = client.get(address, headers={"Accept-Encoding": "identity"})
            assert plain.content == asset.content and "content-encoding" not in plain.headers
            assert client.get(f"/page/{name}?old").headers["cache-control"] == "no-cache"
    with serve(with_page=False) as client:
        assert client.get("/").status_code == 404
