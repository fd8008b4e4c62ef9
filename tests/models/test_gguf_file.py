"""GGUF files: what is written is read back, nothing is copied, and damage is named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from graphrt import dtypes
from graphrt.errors import FormatError, GraphError
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save
from graphrt.models.weights import Weights

METADATA: dict[str, Any] = {
    "a.text": "Zürich",
    "a.count": 3,
    "a.negative": -3,
    "a.long": 1 << 40,
    "a.half": 0.5,
    "a.yes": True,
    "a.words": ["one", "", "drei"],
    "a.numbers": np.array([1, -2, 3], np.int32),
}


def rows(*shape: int, dtype: str = "f32") -> np.ndarray:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 7
    return dtypes.from_f32(values, dtypes.get(dtype))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    tensors = [TensorToWrite.of("w", rows(3, 64)), TensorToWrite.of("blk.0.q", rows(2, 4, 32, dtype="q8_0"))]
    save(path, "llama", METADATA, tensors)
    return path


def test_what_is_written_is_read_back(small: Path) -> None:
    file = GGUFFile.open(small)
    assert file.architecture == "llama"
    assert file.size == small.stat().st_size
    assert {key: file.metadata[key] for key in METADATA if key != "a.numbers"} == {
        key: value for key, value in METADATA.items() if key != "a.numbers"
    }
    assert file.metadata["a.numbers"].dtype == np.int32
    assert file.metadata["a.numbers"].tolist() == [1, -2, 3]
    assert list(file.tensors) == ["w", "blk.0.q"]
    assert file.tensors["blk.0.q"].shape == (2, 4, 32)
    np.testing.assert_array_equal(file.tensors["w"].array, rows(3, 64))
    np.testing.assert_array_equal(file.tensors["blk.0.q"].array, rows(2, 4, 32, dtype="q8_0"))


def test_gguf_reader_agrees(small: Path) -> None:
    ours, theirs = GGUFFile.open(small), GGUFReader(small)
    assert [(tensor.name, tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors] == [
        (tensor.name, tensor.offset, tensor.nbytes) for tensor in ours.tensors.values()
    ]
    for key in METADATA:
        found = ours.metadata[key]
        assert theirs.fields[key].contents() == (found.tolist() if isinstance(found, np.ndarray) else found)


@pytest.mark.parametrize("name", [dtype.name for dtype in dtypes.ALL.values()])
def test_every_dtype_survives(tmp_path: Path, name: str) -> None:
    dtype = dtypes.get(name)
    raw = np.random.default_rng(1).integers(0, 256, (2, 512 // dtype.block * dtype.nbytes), np.uint8)
    array = raw.reshape(-1).view(dtype.numpy).reshape(2, -1)
    save(tmp_path / "x.gguf", "llama", {}, [TensorToWrite.of("x", array)])
    found = GGUFFile.open(tmp_path / "x.gguf").tensors["x"]
    assert found.dtype is dtype
    assert found.shape == (2, 512)
    assert found.array.tobytes() == array.tobytes()


def test_arrays_are_read_only_views_of_the_file(small: Path) -> None:
    file = GGUFFile.open(small)
    tensor = file.tensors["w"]
    assert not tensor.array.flags.writeable
    assert not tensor.array.flags.owndata
    with small.open("r+b") as changed:
        changed.seek(tensor.offset)
        changed.write(struct.pack("<f", 42.0))
    assert tensor.array[0, 0] == 42.0


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_tensors_begin_at_the_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = [TensorToWrite.of(name, rows(1, 3)) for name in ("one", "two")]
    save(tmp_path / "x.gguf", "llama", {"general.alignment": alignment}, tensors)
    for tensor in GGUFFile.open(tmp_path / "x.gguf").tensors.values():
        assert tensor.offset % alignment == 0
        np.testing.assert_array_equal(tensor.array, rows(1, 3))


def test_a_failed_write_leaves_the_old_file(small: Path) -> None:
    before = small.read_bytes()

    def broken() -> Any:
        yield rows(1, 64)
        raise GraphError("[w] out of luck")

    with pytest.raises(GraphError, match="out of luck"):
        save(small, "llama", {}, [TensorToWrite("w", dtypes.f32, (3, 64), broken)])
    assert small.read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == [small.name]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorToWrite("w", dtypes.f32, (3, 64), lambda: [rows(2, 64)]), "512 bytes written"),
        (TensorToWrite("w", dtypes.f16, (3, 64), lambda: [rows(3, 64)]), "float32, the tensor f16"),
        (TensorToWrite("w", dtypes.q8_0, (3, 40), list), "whole number of q8_0 blocks"),
    ],
)
def test_wrong_pieces_are_refused(tmp_path: Path, tensor: TensorToWrite, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        save(tmp_path / "x.gguf", "llama", {}, [tensor])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x\.gguf\] cannot be written: .*absent is not a folder; make it first"):
        save(tmp_path / "absent" / "x.gguf", "llama", {}, [])
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(FormatError, match=r"x\.gguf\] cannot be written: Is a directory"):
        save(tmp_path / "x.gguf", "llama", {}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_values_without_a_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\[odd\] GGUF has no type for 1j"):
        save(tmp_path / "x.gguf", "llama", {"odd": 1j}, [])


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pieces = TensorToWrite("w", dtypes.f32, (4, 64), lambda: [rows(1, 64)] * 4)
    save(tmp_path / "x.gguf", "llama", {}, [pieces], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 1024), (512, 1024), (768, 1024), (1024, 1024)]


def field(data: bytes, name: str, after: int = 0) -> int:
    """Where the bytes behind a name begin."""
    return data.index(name.encode()) + len(name) + after


def put(data: bytes, at: int, form: str, *values: int) -> bytes:
    packed = struct.pack(form, *values)
    return data[:at] + packed + data[at + len(packed) :]


# What the file's damage is, and what the message must say.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "file is empty"),
    "magic": (lambda data: b"GGML" + data[4:], "at byte 0: the file begins with b'GGML'"),
    "version": (lambda data: put(data, 4, "<I", 1), "GGUF version 1 is unknown"),
    "big-endian": (lambda data: put(data, 4, ">I", 3), "big-endian"),
    "short header": (lambda data: data[:20], "needs 8 bytes, 4 of 20 are left"),
    "tensor count": (lambda data: put(data, 8, "<Q", 1 << 50), "1125899906842624 tensors and"),
    "key count": (lambda data: put(data, 16, "<Q", 1 << 63), "9223372036854775808 metadata keys"),
    "key length": (lambda data: put(data, 24, "<Q", 1 << 40), "key of metadata entry 0 is 1099511627776 bytes long"),
    "value type": (
        lambda data: put(data, field(data, "a.count"), "<I", 77),
        'value of "a.count" has the unknown value type',
    ),
    "string length": (lambda data: put(data, field(data, "a.text", 4), "<Q", 1 << 33), "needs 8589934592 bytes"),
    "array count": (
        lambda data: put(data, field(data, "a.words", 8), "<Q", 1 << 61),
        "claims 2305843009213693952 elements",
    ),
    "element type": (lambda data: put(data, field(data, "a.words", 4), "<I", 99), "unknown element type 99"),
    "nesting": (
        lambda data: put(data, field(data, "a.words"), "<IIQIQIQIQIQIQ", 9, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1),
        "nests arrays more than 4 deep",
    ),
    "text": (lambda data: data.replace("ü".encode(), b"\xff\xff"), "is not valid UTF-8"),
    "same key": (lambda data: data.replace(b"a.half", b"a.text"), 'stands twice: "a.text"'),
    "dimensions": (lambda data: put(data, field(data, "blk.0.q"), "<I", 9), '"blk.0.q" has 9 dimensions'),
    "no elements": (lambda data: put(data, field(data, "blk.0.q", 4), "<Q", 0), "dimension of zero"),
    "row": (
        lambda data: put(data, field(data, "blk.0.q", 4), "<Q", 33),
        "rows of 33 elements, q8_0 needs a multiple of 32",
    ),
    "size": (lambda data: put(data, field(data, "blk.0.q", 20), "<Q", 1 << 62), "the file ends at"),
    "offset": (lambda data: put(data, field(data, "blk.0.q", 32), "<Q", 1 << 40), "the file ends at"),
    "alignment": (lambda data: put(data, field(data, "blk.0.q", 32), "<Q", 1), "not a multiple of the alignment 32"),
    "overlap": (
        lambda data: put(data, field(data, "blk.0.q", 32), "<Q", 0),
        'tensor "w" takes bytes 448 to 1216, where "blk.0.q" begins at 448',
    ),
    "type": (lambda data: put(data, field(data, "blk.0.q", 28), "<I", 1234), "unknown GGML type 1234"),
    "cut": (lambda data: data[:-40], "takes bytes 1216 to 1488, the file ends at 1464"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(small: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    small.write_bytes(change(small.read_bytes()))
    with pytest.raises(FormatError, match=rf"^\[small\.gguf\].*{message}.*; \w"):
        GGUFFile.open(small)


@pytest.mark.parametrize("alignment", [0, 1, 4, 24])
def test_an_alignment_must_be_a_power_of_two(tmp_path: Path, alignment: int) -> None:
    save(tmp_path / "x.gguf", "llama", {"general.alignment": 32}, [TensorToWrite.of("w", rows(1, 32))])
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(put(data, field(data, "general.alignment", 4), "<I", alignment))
    with pytest.raises(FormatError, match=f"general.alignment is {alignment}, not a power of two of at least 8"):
        GGUFFile.open(tmp_path / "x.gguf")


def test_a_second_tensor_of_a_name_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.gguf", "llama", {}, [TensorToWrite.of(name, rows(1, 32)) for name in ("one", "two")])
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes().replace(b"two", b"one"))
    with pytest.raises(FormatError, match='a second tensor "one"'):
        GGUFFile.open(tmp_path / "x.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"absent\.gguf\] cannot be opened: No such file"):
        GGUFFile.open(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="Is a directory"):
        GGUFFile.open(tmp_path)


def test_a_type_that_cannot_be_read_can_be_listed(small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(put(data, field(data, "blk.0.q", 28), "<I", 24))  # 64 blocks of 34 bytes hold 256 bytes of i8
    assert GGUFFile.open(small).tensors["blk.0.q"].dtype is dtypes.i8
    save(small, "llama", {}, [TensorToWrite.of("x", rows(1, 256, dtype="q8_0"))])
    data = small.read_bytes()
    small.write_bytes(put(data, field(data, "x", 20), "<I", 19))
    tensor = GGUFFile.open(small).tensors["x"]
    assert (tensor.dtype, tensor.type_name, tensor.shape, tensor.nbytes) == (None, "iq1_s", (1, 256), 50)
    with pytest.raises(FormatError, match='tensor "x" is of type iq1_s, which graphrt cannot read; requantize'):
        tensor.array  # noqa: B018


def write_parts(folder: Path, count: int, **changes: Any) -> list[Path]:
    paths = []
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        split = {"split.no": number, "split.count": count, "split.tensors.count": 2 * count, **changes}
        tensors = [TensorToWrite.of(f"w{number}.{index}", rows(1, 32) + number) for index in range(2)]
        save(path, "llama", (METADATA if number == 0 else {}) | split, tensors)
        paths.append(path)
    return paths


@pytest.mark.parametrize("named", [0, 2])
def test_a_split_model_is_one(tmp_path: Path, named: int) -> None:
    paths = write_parts(tmp_path, 3)
    file = GGUFFile.open(paths[named])
    assert file.path == paths[0]
    assert file.metadata["a.text"] == "Zürich"
    assert file.size == sum(path.stat().st_size for path in paths)
    assert list(file.tensors) == [f"w{number}.{index}" for number in range(3) for index in range(2)]
    np.testing.assert_array_equal(file.tensors["w2.1"].array, rows(1, 32) + 2)


def test_a_split_model_must_be_whole(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, 3)
    paths[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.gguf\] cannot be opened"):
        GGUFFile.open(paths[0])
    with pytest.raises(FormatError, match=r"the metadata names 3 parts, the file's name 1"):
        GGUFFile.open(tmp_path / "elsewhere.gguf")
    with pytest.raises(FormatError, match="7 tensors announced, 4 found"):
        GGUFFile.open(write_parts(tmp_path, 2, **{"split.tensors.count": 7})[0])


def test_weights_check_names_and_shapes(small: Path) -> None:
    weights = Weights(GGUFFile.open(small))
    assert weights.take("w", (3, 64)).shape == (3, 64)
    assert weights.take("w", (3, 64)) is weights.take("w", (3, 64))
    assert weights.find("b", (3,)) is None
    assert weights.unused == ["blk.0.q"]
    with pytest.raises(FormatError, match=r'no tensor "b" \(3,\)'):
        weights.take("b", (3,))
    with pytest.raises(FormatError, match=r'"w" has shape \(3, 64\), the metadata asks for \(64, 3\)'):
        weights.take("w", (64, 3))


def test_weights_take_a_matrix_for_three_axes(tmp_path: Path) -> None:
    save(tmp_path / "x.gguf", "deepseek2", {}, [TensorToWrite.of("k_b", rows(8, 64, dtype="q8_0"))])
    weights = Weights(GGUFFile.open(tmp_path / "x.gguf"))
    assert weights.take("k_b", (2, 4, 64)).shape == (2, 4, 64)
    weights.ignore("k_b")
    assert weights.unused == []
