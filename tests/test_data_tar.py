"""Tar shards: what a sample is, where its bytes lie, and what is refused."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.data import files as data_files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, open_source
from must_jax.data.sources.tar_index import content, members
from must_jax.errors import UserError

CLASSES = Classes(["cat", "dog", "snail"])


def _pack(path, files, *, tar_format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _samples(path, **keywords):
    source = open_source(path, **({"classes": CLASSES} | keywords))
    names = [source.name_of(i).rpartition(":")[2] for i in range(len(source))]
    return names, [source.read(i) for i in range(len(source))], source.labels


def _refusal(path, **keywords):
    with pytest.raises(UserError) as error:
        open_source(path, **({"classes": CLASSES} | keywords))
    assert "\n" not in str(error.value)
    return str(error.value)


# As long as file systems have them.
names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/."),
    min_size=1,
    max_size=255,
)


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(
        st.tuples(
            st.lists(
                st.one_of(names, names.map(lambda name: (name * 60)[:255])), min_size=1, max_size=4
            ),
            st.integers(0, 3000),
        ),
        max_size=6,
    ),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_tarfile(tmp_path_factory, files, tar_format):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    written = [("/".join(parts), os.urandom(size)) for parts, size in files]
    _pack(path, written, tar_format=tar_format)
    with path.open("rb") as file:
        found = list(members(file, path="x"))
        data = [content(file, member) for member in found]
    with tarfile.open(path) as tar:
        theirs = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(m.name, m.start, m.size) for m in found] == theirs
    assert data == [data for _, data in written]


def test_names_with_a_prefix_as_the_standard_has_them(tmp_path):
    name = "d" * 120 + "/" + "f" * 90 + ".jpg"
    path = _pack(tmp_path / "x.tar", [(name, b"1")], tar_format=tarfile.USTAR_FORMAT)
    with path.open("rb") as file:
        assert [member.name for member in members(file, path="x")] == [name]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_what_tar_itself_packs(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/1.JPG").write_bytes(b"one")
    (tmp_path / "in/sub/1.cls").write_bytes(b"2\n")
    (tmp_path / "in/2.png").write_bytes(b"two")
    (tmp_path / "in/2.cls").write_bytes(b"0")
    command = ["tar", "--sort=name", "-C", "in", "-cf", "x.tar", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    keys, data, labels = _samples(tmp_path / "x.tar", labels="required")
    assert keys == ["2", "sub/1"]
    assert data == [b"two", b"one"]
    assert labels.tolist() == [0, 2]


def test_samples_of_many_shards(tmp_path):
    for shard in range(12):
        files = []
        for i in range(3):
            files += [
                (f"{i}.json", b"{}"),
                (f"{i}.webp", b"%d %d" % (shard, i)),
                (f"{i}.txt", b"a"),
            ]
            files += [(f"{i}.cls", b"%d" % (shard % 3))]
        _pack(tmp_path / f"s-{shard:02}.tar", files)
    expected = [b"%d %d" % (shard, i) for shard in range(12) for i in range(3)]
    for pattern in ("s-*.tar", "s-{00..11}.tar", "s-{00..03}*.tar", "s-{00,01}.tar"):
        _, data, labels = _samples(tmp_path / pattern, labels="required")
        assert data == expected[: len(data)]
        assert labels.tolist() == [i // 3 % 3 for i in range(len(data))]
    source = open_source(tmp_path / "s-*.tar")
    assert source.name_of(35) == f"{tmp_path}/s-11.tar:2"
    assert len(source) == 36
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in (35, 0)] == [expected[35], expected[0]]


def test_labels_by_name_in_json_and_in_another_ending(tmp_path):
    meta = json.dumps({"species": "dog", "caption": "x" * 9000}).encode()
    path = _pack(tmp_path / "x.tar", [("1.jpg", b""), ("1.json", meta), ("1.breed.txt", b"Snail")])
    assert _samples(path)[2] is None
    assert _samples(path, label_field="species")[2].tolist() == [1]
    assert _samples(path, label_field="breed.txt")[2].tolist() == [2]
    _pack(path, [("1.jpg", b""), ("1.json", b'{"n": 2}')])
    assert _samples(path, label_field="n")[2].tolist() == [2]


def test_a_label_behind_a_byte_order_mark(tmp_path):
    path = _pack(tmp_path / "x.tar", [("1.jpg", b""), ("1.cls", b"\xef\xbb\xbf2\n")])
    assert _samples(path)[2].tolist() == [2]


def test_a_working_folder_with_brackets(tmp_path, monkeypatch):
    (tmp_path / "a[1]{b,c}").mkdir()
    _pack(tmp_path / "a[1]{b,c}" / "x-0.tar", [("1.jpg", b"one")])
    monkeypatch.chdir(tmp_path / "a[1]{b,c}")
    for path in ("x-*.tar", "x-{0..0}.tar", "x-0.tar"):
        source = open_source(path)
        assert source.name_of(0) == f"{tmp_path}/a[1]{{b,c}}/x-0.tar:1"
        monkeypatch.chdir(tmp_path)
        assert source.read(0) == b"one"
        monkeypatch.chdir(tmp_path / "a[1]{b,c}")


def test_which_image(tmp_path):
    files = [("a.b.png", b"1"), ("a.jpg", b"2"), ("a.seg.png", b"3")]
    path = _pack(tmp_path / "x.tar", files)
    assert _samples(path)[1] == [b"2"]
    assert _samples(path, image_field=".seg.png")[1] == [b"3"]


def test_what_is_not_a_sample(tmp_path):
    files = [("._1.jpg", b"0"), ("__MACOSX/1.jpg", b"0"), (".cache/1.jpg", b"0"), ("1.jpg", b"1")]
    assert _samples(_pack(tmp_path / "x.tar", files))[1] == [b"1"]


@pytest.mark.parametrize(
    ("files", "keywords", "expected"),
    [
        ([], {}, "no images"),
        ([("readme.txt", b"x")], {}, "x.tar:readme: no image among .txt"),
        ([("1.jpg", b""), ("1.png", b"")], {}, "x.tar:1: more than one image among .jpg, .png"),
        ([("1.jpg", b""), ("1.JPG", b"")], {}, "x.tar:1: two files end in .jpg"),
        ([("1.jpg", b"")], {"image_field": "png"}, "x.tar:1: no image among .jpg"),
        ([("1.jpg", b"")], {"labels": "required"}, "x.tar:1: no label"),
        (
            [("1.jpg", b""), ("1.cls", b"dgo")],
            {"labels": "required"},
            "x.tar:1: label 'dgo' is not a class; nearest: 'dog'",
        ),
        ([("1.jpg", b""), ("1.cls", b"3")], {"labels": "required"}, "label 3 is not from 0 to 2"),
        ([("1.jpg", b""), ("1.cls", b"\xff")], {}, "x.tar:1: its label does not read"),
        ([("1.jpg", b""), ("1.json", b"{")], {"label_field": "n"}, "its label does not read"),
        ([("1.jpg", b""), ("1.json", b"[" * 99_999)], {"label_field": "n"}, "label does not read"),
        ([("1.jpg", b""), ("1.json", b'{"n": []}')], {"label_field": "n"}, "neither a name nor"),
    ],
)
def test_refusals_name_the_sample(tmp_path, files, keywords, expected):
    message = _refusal(_pack(tmp_path / "x.tar", files), **keywords)
    assert expected in message
    assert str(tmp_path) in message


def test_damaged_shards(tmp_path):
    path = _pack(tmp_path / "x.tar", [("1.jpg", bytes(5000)), ("2.jpg", bytes(3000))])
    whole = path.read_bytes()
    header_of_second = 512 + 5120
    for data, expected in [
        (b"", "not an uncompressed tar"),
        (whole[:100], "not an uncompressed tar"),
        (whole[:3000], "cut short at byte 3000, within 1.jpg"),
        # Between two files: the first is whole, and nothing tells of the second but the end mark.
        (whole[:header_of_second], f"cut short at byte {header_of_second}, before the archive's"),
        (whole[:6000], "cut short at byte 6000"),
        (b"not a tar" * 200, "not an uncompressed tar"),
        (b"\x1f\x8b" + bytes(600), "not an uncompressed tar"),
        (whole[:5700] + b"x" + whole[5701:], f"damaged at byte {header_of_second}"),
    ]:
        path.write_bytes(data)
        message = _refusal(path)
        assert expected in message
        assert str(path) in message


def _header(name, size, kind):
    """A header of a kind that tarfile writes by itself only."""
    info = tarfile.TarInfo(name)
    info.size = size
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[156:157], header[148:156] = kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _extended(fields, kind=tarfile.XHDTYPE):
    """Fields of an extended header, and a file behind it."""
    block = fields + bytes(-len(fields) % 512)
    return _header("x", len(fields), kind) + block + _header("1.jpg", 0, tarfile.REGTYPE)


@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        (
            b"1100000 a=".ljust(1_100_000, b"b"),
            tarfile.XHDTYPE,
            "an extended header of 1100000 bytes",
        ),
        (b"n" * 1_100_000, tarfile.GNUTYPE_LONGNAME, "an extended header of 1100000 bytes"),
        (b"n" * 1_100_000, tarfile.GNUTYPE_LONGLINK, "an extended header of 1100000 bytes"),
        (b"1" * 300, tarfile.XHDTYPE, "an extended header of digits"),
        (b"2 " * 200 + b"=", tarfile.XHDTYPE, "an extended header that is damaged"),
        (b"9 1234567" + b"6 a=b\n", tarfile.SOLARIS_XHDTYPE, "an extended header that is damaged"),
    ],
)
def test_extended_headers_that_would_take_gigabytes_or_minutes(tmp_path, fields, kind, expected):
    path = tmp_path / "x.tar"
    path.write_bytes(_extended(fields, kind) + bytes(1024))
    assert f"{path}: not an uncompressed tar archive, or damaged ({expected})" in _refusal(path)


def test_a_header_of_negative_size(tmp_path):
    header = bytearray(_header("x", 0, tarfile.XHDTYPE))
    header[124:136], header[148:156] = (-513 & (1 << 96) - 1).to_bytes(12, "big"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    assert "an extended header of -513 bytes" in _refusal(path)


def test_headers_for_all_files_are_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    fields = b"".join(b"12 k%05d=v\n" % i for i in range(7000)) + b"15 path=other\n"
    path.write_bytes(_extended(fields, tarfile.XGLTYPE) + bytes(1024))
    assert _samples(path)[0] == ["1"]
    with path.open("rb") as file:
        (member,) = members(file, path="x")
    assert member.start == path.stat().st_size - 1024


def test_members_are_not_kept(tmp_path, monkeypatch):
    opened = []

    class Noted(tarfile.TarFile):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            opened.append(self)

    monkeypatch.setattr(tarfile, "open", Noted.open)
    path = tmp_path / "x.tar"
    path.write_bytes(_header("1.jpg", 0, tarfile.REGTYPE) * 9 + bytes(1024))
    with path.open("rb") as file:
        assert len(list(members(file, path="x"))) == 9
    assert not opened[0].members


@pytest.mark.parametrize("by_type", [True, False])
def test_sparse_files_are_refused_before_their_map_is_read(tmp_path, by_type, monkeypatch):
    if by_type:
        data = _header("1.jpg", 0, tarfile.GNUTYPE_SPARSE)
        monkeypatch.setattr(tarfile.TarInfo, "_proc_sparse", None)
    else:
        fields = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
        data = _extended(fields)
        monkeypatch.setattr(tarfile.TarInfo, "_proc_gnusparse_10", None)
    path = tmp_path / "x.tar"
    path.write_bytes(data + bytes(1024))
    assert "1.jpg is a link or sparse" in _refusal(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path, kind):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = kind, "2.jpg"
        tar.addfile(info)
    assert "1.jpg is a link" in _refusal(path)


def test_compressed_missing_and_mixed_shards(tmp_path):
    for name in ("x.tar.gz", "x.tgz", "x.tar.zst"):
        (tmp_path / name).touch()
        assert "compressed tar has no random access" in _refusal(tmp_path / name)
    _pack(tmp_path / "s-0.tar", [("1.jpg", b"")])
    assert f"{tmp_path}/s-1.tar: cannot be read (No such file" in _refusal(
        tmp_path / "s-{0..1}.tar"
    )
    assert "no file matches" in _refusal(tmp_path / "t-*.tar")
    (tmp_path / "s-0.array_record").touch()
    assert "as all of the 2 must be" in _refusal(tmp_path / "s-0.*")


def test_a_shard_that_shrinks_or_goes_later_on(tmp_path):
    path = _pack(tmp_path / "x.tar", [("1.jpg", bytes(5000))])
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UndecodableImageError, match=r"x\.tar:1: the shard is shorter than it was"):
        source.read(0)
    path.unlink()
    with pytest.raises(UndecodableImageError, match=r"x\.tar:1: No such file"):
        source.read(0)


def _of_size(name, size):
    """A header whose size is a number in base 256, as for files of gigabytes."""
    header = bytearray(_header(name, 0, tarfile.REGTYPE))
    header[124:136], header[148:156] = (size & (1 << 96) - 1).to_bytes(12, "big"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("name", ["1.jpg", "1.cls", "1.json"])
@pytest.mark.parametrize("size", [-1, -512, -(2**40)])
def test_a_file_of_negative_size_is_damage(tmp_path, name, size):
    """To read -1 bytes is to read all there are."""
    path = tmp_path / "x.tar"
    path.write_bytes(_header("0.jpg", 0, tarfile.REGTYPE) + _of_size(name, size) + bytes(20480))
    message = _refusal(path, label_field="n")
    assert f"damaged within {name}, of {size} bytes" in message or "not an uncompressed" in message
    path.write_bytes(_of_size("1.jpg", -1) + bytes(20480))
    assert f"{path}: damaged within 1.jpg, of -1 bytes" in _refusal(path)


@pytest.mark.parametrize("size", [-1, -(2**40)])
def test_no_range_is_read_of_negative_size(tmp_path, size):
    (tmp_path / "x").write_bytes(b"12345")
    for path in (f"{tmp_path}/x", "memory://x"):
        with pytest.raises(OSError, match=f"{size} bytes"):
            data_files.read_range(path, 2, size)


@pytest.mark.parametrize(("name", "field"), [("1.cls", ""), ("1.json", "n")])
def test_a_label_of_more_than_a_mebibyte(tmp_path, name, field):
    path = _pack(tmp_path / "x.tar", [("1.jpg", b""), (name, b"[" + b"[]," * 2**19)])
    expected = f"x.tar:1: its label does not read ({name}: larger than 1 MiB)"
    assert expected in _refusal(path, label_field=field)
    fitting = b"1" if name == "1.cls" else b'{"n": 1}'
    _pack(path, [("1.jpg", b""), (name, fitting.ljust(2**20))])
    assert _samples(path, label_field=field)[2].tolist() == [1]
