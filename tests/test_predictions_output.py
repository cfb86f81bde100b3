"""Files of predictions: one content in three formats, whole after a kill at any moment."""

import csv
import json
import os
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from full_disks import files_up_to

from must_jax.errors import UserError
from must_jax.predictions import Output, Predicted, check_output

CLASSES = ('=HYPERLINK("x")', "black, white", "line\nbreak", 'a "quoted" one')
NAMES = ["/a/plain.jpg", "/a/com,ma.jpg", '/a/"quote".jpg', "/a/new\nline.jpg", "/a/\udcff.jpg"]
FORMATS = ("csv", "jsonl", "parquet")


class Killed(BaseException):
    """What no code under test may catch."""


def batches(count=4, *, fail=True):
    """Predictions of 5 images each, one of which failed if any does."""
    rng = np.random.default_rng(0)
    for number in range(count):
        classes = np.array([rng.permutation(4)[:2] for _ in NAMES])
        if fail:
            classes[2] = -1
        probabilities = np.sort(rng.random((5, 2), np.float32), axis=1)[:, ::-1]
        names = [f"{name}{number}" for name in NAMES]
        reasons = {2: f"too, short {number}"} if fail else {}
        yield Predicted(names, classes, probabilities, reasons)


def start(path, **facts):
    return Output(
        check_output(str(path)),
        facts={"--tree": "teacher"} | facts,
        class_names=CLASSES,
        top_k=2,
        predicted_by="teacher",
    )


def write(path, **which):
    """All batches, from where the output is on."""
    output = start(path)
    try:
        for predicted in list(batches(**which))[output.tally.images // 5 :]:
            output.add(predicted)
            output.commit()
        output.finish()
    finally:
        output.close()
    return output


def rows_of(path):
    """Rows with numbers as numbers, and None where a CSV file has nothing."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                name: None
                if cell == ""
                else float(cell)
                if name.startswith("p") and name != "path" and name != "predicted_by"
                else cell
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


def test_three_formats_say_the_same(tmp_path):
    found = {}
    for ending in FORMATS:
        output = write(tmp_path / f"out.{ending}")
        found[ending] = rows_of(tmp_path / f"out.{ending}")
        with output.failures.open(newline="") as file:
            assert list(csv.reader(file)) == [
                ["path", "reason"],
                *([f'/a/"quote".jpg{i}', f"too, short {i}"] for i in range(4)),
            ]
    # Nothing else is left, and outputs that lie side by side keep their failures apart.
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"out.{ending}{more}" for ending in FORMATS for more in ("", ".failed.csv")}
    assert [list(row) for row in found["csv"]] == [list(row) for row in found["jsonl"]]
    # What a spreadsheet would run has an apostrophe before it, in CSV alone.
    for row in found["csv"]:
        for name in ("class_1", "class_2"):
            row[name] = row[name] and row[name].removeprefix("'")
    expected = [
        (name, classes.tolist(), probabilities)
        for one in batches()
        for name, classes, probabilities in zip(
            one.names, one.classes, one.probabilities, strict=True
        )
    ]
    for ending, table in found.items():
        assert len(table) == len(expected) == 20, ending
        for row, (name, classes, probabilities) in zip(table, expected, strict=True):
            assert row["path"] == name.replace("\udcff", "\\xff")
            assert row["predicted_by"] == "teacher"
            for rank in range(2):
                cells = row[f"class_{rank + 1}"], row[f"probability_{rank + 1}"]
                if classes[rank] < 0:
                    assert cells == (None, None), ending
                else:
                    # Text has as many digits as tell a float32 from its neighbours.
                    assert (cells[0], np.float32(cells[1])) == (
                        CLASSES[classes[rank]],
                        probabilities[rank],
                    ), ending


def test_a_spreadsheet_runs_no_cell(tmp_path):
    output = start(tmp_path / "out.csv")
    names = ["=1+1", "+1", "-1", "@sum", "\tx", "safe"]
    nothing = np.full((6, 2), -1), np.zeros((6, 2), np.float32)
    output.add(Predicted(names, *nothing, {0: "=2"}))
    output.finish()
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [
            *("'" + name for name in names[:-1]),
            "safe",
        ]
    assert "'=1+1,'=2\n" in (tmp_path / "out.csv.failed.csv").read_text()


@pytest.mark.parametrize("fail", [True, False])
@pytest.mark.parametrize("ending", FORMATS)
def test_killed_at_any_moment_the_file_is_the_same_byte_for_byte(
    ending, fail, tmp_path, monkeypatch
):
    """Stops at every call that changes the disk, goes on, and stops again at the next such call."""
    whole = tmp_path / "whole"
    write(whole / f"out.{ending}", fail=fail)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    calls = {"left": 0, "made": 0}

    def failing(function):
        def stopping(*args, **keywords):
            calls["made"] += 1
            if calls["made"] > calls["left"]:
                raise Killed
            return function(*args, **keywords)

        return stopping

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    monkeypatch.setattr(pathlib.Path, "unlink", failing(pathlib.Path.unlink))
    killed = 0
    for allowed in range(1, 40):
        path = tmp_path / f"{allowed}" / f"out.{ending}"
        for extra in range(3):
            calls |= {"left": allowed + extra, "made": 0}
            try:
                write(path, fail=fail)
                break
            except Killed:
                killed += 1
        else:
            calls |= {"left": 1000, "made": 0}
            # A run that was complete but for its last file operation is refused or completed.
            write(path, fail=fail)
        assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == expected, allowed
    assert killed > 20


@pytest.mark.parametrize("size", [100, 700])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_full_disk_is_one_line(ending, size, tmp_path):
    with files_up_to(size), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        write(tmp_path / f"out.{ending}")


@pytest.mark.parametrize("ending", FORMATS)
def test_killed_again_and_again_at_its_very_end_the_file_is_whole(ending, tmp_path, monkeypatch):
    expected = write(tmp_path / f"whole.{ending}")._path.read_bytes()
    path = tmp_path / f"out.{ending}"
    progress = tmp_path / f"{path.name}.progress.json"

    def killed(self, **_):
        if self == progress:
            raise Killed
        os.unlink(self)

    monkeypatch.setattr(pathlib.Path, "unlink", killed)
    for _ in range(3):
        with pytest.raises(Killed):
            write(path)
        assert path.read_bytes() == expected
    monkeypatch.undo()
    write(path)
    assert path.read_bytes() == expected
    assert not progress.exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"facts": 3},
        {"tally": {"images": 20}},
        {"tally": []},
        {"bytes": None},
        {"bytes": -1},
        {"bytes": 10**30},
        {"bytes_of_failed": 1.5},
        *(
            {"tally": {"images": 5, "failed": 1, "counts": [1, 1, 1, 1], "confidence": 2.0} | one}
            for one in (
                {"images": True},
                {"images": 6},
                {"failed": -1},
                {"counts": [4]},
                {"counts": [0, 0, 0, 4.0]},
                {"counts": None},
                {"confidence": float("nan")},
                {"confidence": 5.0},
                {"more": 1},
            )
        ),
    ],
)
def test_damaged_progress_is_told(tmp_path, damage):
    output = start(tmp_path / "out.csv")
    output.add(next(batches()))
    output.commit()
    output.close()
    progress = tmp_path / "out.csv.progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | damage))
    with pytest.raises(UserError, match=r"out\.csv\.progress\.json cannot be read .*remove it and"):
        start(tmp_path / "out.csv")


def test_progress_that_lacks_something_is_told(tmp_path):
    start(tmp_path / "out.csv").close()
    (tmp_path / "out.csv.progress.json").write_text('{"facts": {}}')
    with pytest.raises(
        UserError, match=r"progress\.json cannot be read \(it has no 'tally'\); remove"
    ):
        start(tmp_path / "out.csv")


def test_a_pipe_and_a_link_in_a_files_place(tmp_path):
    for kind, lay in (("pipe", os.mkfifo), ("link", lambda path: path.symlink_to(tmp_path / "my"))):
        for name in ("progress.json", "partial", "failed.csv.partial"):
            path = tmp_path / kind / name / "out.csv"
            path.parent.mkdir(parents=True)
            start(path).close()
            there = path.with_name(f"out.csv.{name}")
            there.unlink()
            lay(there)
            (tmp_path / "my").write_text("mine" * 100)
            with pytest.raises(UserError, match=r"out\.csv.* cannot be (read|written)"):
                write(path)
            assert (tmp_path / "my").read_text() == "mine" * 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-9],
        lambda d: d.replace(b'"path"', b'"pith"', 1),
        lambda d: d[: d.index(b"\n") + 1],
        lambda d: d.replace(b": 0.", b": [0].", 1),
        lambda d: b"\xff" + d[1:],
        lambda d: b"[" * 99999,
    ],
)
def test_damaged_rows_are_told_and_no_file_is_made_of_them(tmp_path, damage):
    output = start(tmp_path / "out.parquet")
    for one in batches():
        output.add(one)
    output.commit()
    partial = tmp_path / "out.parquet.partial"
    partial.write_bytes(damage(partial.read_bytes()))
    with pytest.raises(
        UserError, match=r"out\.parquet\.partial is damaged .*progress\.json to start"
    ):
        output.finish()
    assert not {"out.parquet", "out.parquet.tmp"} & {path.name for path in tmp_path.iterdir()}


def test_what_was_written_after_the_last_commit_is_cut_off(tmp_path):
    write(tmp_path / "whole.csv")
    output = start(tmp_path / "out.csv")
    first, second, *_ = batches()
    output.add(first)
    output.commit()
    output.add(second)
    output.close()
    with (tmp_path / "out.csv.partial").open("ab") as file:
        file.write(b"half a li")
    assert write(tmp_path / "out.csv").tally.images == 20
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_tally_is_of_all_rows_also_after_a_stop(tmp_path):
    output = start(tmp_path / "out.csv")
    output.add(next(batches()))
    output.commit()
    output.close()
    tally = write(tmp_path / "out.csv").tally
    all_of_them = list(batches())
    firsts = np.concatenate([one.classes[:, 0] for one in all_of_them])
    assert (tally.images, tally.failed) == (20, 4)
    assert tally.counts == np.bincount(firsts[firsts >= 0], minlength=4).tolist()
    total = sum(one.probabilities[[0, 1, 3, 4], 0].astype(np.float64).sum() for one in all_of_them)
    assert tally.confidence == pytest.approx(total, rel=1e-14)  # float64 sums in another order


def test_without_failures_there_is_no_list_of_them(tmp_path):
    output = start(tmp_path / "out.jsonl")
    one = next(batches())
    output.add(Predicted(one.names[:2], one.classes[:2], one.probabilities[:2], {}))
    output.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_outputs_that_would_lose_something_are_refused(tmp_path):
    for path, told in {
        "out.xlsx": "must be a name that ends in .csv, .jsonl or .parquet",
        "gs://b/out.csv": "local",
    }.items():
        with pytest.raises(UserError, match=told):
            check_output(path)
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(UserError, match=r"there\.csv is there already"):
        start(tmp_path / "there.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    start(tmp_path / "out.csv").close()
    with pytest.raises(UserError, match=r"begun with --top_k None, and it is 7 now"):
        start(tmp_path / "out.csv", **{"--top_k": 7})
    with (tmp_path / "out.csv.partial").open("wb"):
        pass
    with pytest.raises(UserError, match=r"out\.csv\.partial is shorter than it was"):
        start(tmp_path / "out.csv")
    (tmp_path / "out.csv.progress.json").write_text("{")
    with pytest.raises(UserError, match=r"progress\.json cannot be read"):
        start(tmp_path / "out.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        start(tmp_path / "file" / "out.csv")
